"""The dialogues that the model learns from are written by hand: a slip in their notation must not reach the model."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from random import Random
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def grammar(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from tiny_model.grammar import Grammar
    from tiny_model.lexicon import Word

    apple = Word("apple", "n", "an apple", "apples", "a round fruit", "fruit", (), 1, None)
    text = "\n".join((SCRIPTS / "tiny_model" / name).read_text() for name in ("dialogues.txt", "questions.txt"))
    return Grammar(text, lambda slot: apple if slot in ("noun", "thing", "core", "verb", "adjective") else None)


def test_every_line_of_every_form_can_be_filled_in(grammar: Any) -> None:
    rng = Random(1)
    for form in grammar.forms:
        for users, answers in form.turns:
            assert answers, f"nobody answers {users}"
            for line in users + [answer.partition(" ")[2] for answer in answers]:
                for _ in range(5):
                    said = grammar.expand(line, rng, {})
                    assert said
                    assert not re.search(r"\[[^\]]*\||\{[a-z_]+[.#}]|\(n\)", said), (line, said)


def test_a_numbered_slot_is_the_same_in_question_and_answer(grammar: Any) -> None:
    rng = Random(1)
    bound: dict[tuple[str, str], Any] = {}
    asked = grammar.expand("Tell me a story about a(n) {animal#1}.", rng, bound)
    told = grammar.expand("Once upon a time there was a(n) {animal#1}.", rng, bound)
    assert asked.removeprefix("Tell me a story about ") == told.removeprefix("Once upon a time there was ")


def test_the_script_says_how_it_is_used_without_installing_anything() -> None:
    shown = subprocess.run(
        [SCRIPTS / "train-tiny-model", "--help"], capture_output=True, text=True, check=True, timeout=60
    )
    assert all(option in shown.stdout for option in ("--steps", "--out", "--work", "--export-only"))
