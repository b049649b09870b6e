"""Reads ``dialogues.txt`` and makes dialogues from it: its first lines say how it is written."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from tiny_model.lexicon import Word, with_article

#: What the user says, and what the assistant answers.
Exchange = tuple[str, str]

_SLOT = re.compile(r"\{([a-z_]+)(?:\.([a-z]+))?(?:#(\d))?\}")
_CHOICE = re.compile(r"\[([^\[\]]*\|[^\[\]]*)\]")


@dataclass
class Form:
    name: str
    weight: int
    #: Alternatives of the user and of the assistant, for each exchange in turn.
    turns: list[tuple[list[str], list[str]]] = field(default_factory=list)


class Grammar:
    """``draw`` gives a word of the dictionary for a slot such as ``noun``, or None if it isn't one of its slots."""

    def __init__(self, text: str, draw: Callable[[str], Word | None]) -> None:
        self.draw = draw
        self.lists: dict[str, list[str]] = {}
        self.forms: list[Form] = []
        for line in text.splitlines():
            if line.startswith("= "):
                name, weight = line[2:].rsplit(" ", 1)
                self.forms.append(Form(name, int(weight)))
                phrases: list[str] | None = None
            elif line.startswith("> "):
                turns = self.forms[-1].turns
                if not turns or turns[-1][1]:
                    turns.append(([], []))
                turns[-1][0].append(line[2:])
            elif line.startswith(("< ", "<= ")):
                self.forms[-1].turns[-1][1].append(line)
            elif line.startswith("% "):
                phrases = self.lists.setdefault(line[2:], [])
            elif line and not line.startswith("#"):
                assert phrases is not None, f"a phrase outside of a list: {line}"
                phrases.append(line)
        self.weights = [form.weight for form in self.forms]

    def dialogue(self, rng: Random) -> list[Exchange]:
        form = rng.choices(self.forms, self.weights)[0]
        bound: dict[tuple[str, str], str | Word] = {}
        exchanges = []
        for users, answers in form.turns[: rng.randint(1, len(form.turns))]:
            user = self.expand(rng.choice(users), rng, bound)
            mark, _, answer = rng.choice(answers).partition(" ")
            answer = self.expand(answer, rng, bound)
            exchanges.append((user, answer if mark == "<=" else capitalize(answer)))
        return exchanges

    def expand(self, line: str, rng: Random, bound: dict[tuple[str, str], str | Word]) -> str:
        while choice := _CHOICE.search(line):
            line = line[: choice.start()] + rng.choice(choice[1].split("|")) + line[choice.end() :]

        def fill(slot: re.Match[str]) -> str:
            name, part, key = slot.groups()
            value = bound.get((name, key)) if key else None
            if value is None:
                value = self.draw(name)
                if value is None:
                    value = self.expand(rng.choice(self.lists[name]), rng, bound)
                if key:
                    bound[name, key] = value
            return value if isinstance(value, str) else getattr(value, part or "text")

        line = _SLOT.sub(fill, line).replace("\\n", "\n")
        line = re.sub(r"\b[Aa]\(n\) (\w+)", lambda found: with_article(found[1]), line)
        return re.sub(r" +(?=[ .,?!]|$)", "", line).strip()


def capitalize(text: str) -> str:
    """Sentences and lines of verse begin with a capital."""
    return re.sub(r"(^|[.!?] |\n)([a-z])(?=[a-z]* |[a-z]*[.,!])", lambda found: found[1] + found[2].upper(), text)
