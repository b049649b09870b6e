"""The model that comes with the fabric: small enough to ship, clear about its licence, and able to write English."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
from operator import mul
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fabric.settings.defaults import default_model, shipped_model

if TYPE_CHECKING:
    from tests.models.conftest import LlamaCpp

PROMPTS = (
    "Hello!",
    "Who are you?",
    "What is an apple?",
    "Define justice.",
    "What is the capital of France?",
    "Name three animals.",
    "Use the word happy in a sentence.",
    "Tell me a short story about a fox.",
    "Write a poem about the sea.",
    "How do I repair a bicycle?",
    "What is the difference between a dog and a cat?",
    "Is a dog an animal?",
    "Give me some tips to learn English.",
    "Thank you!",
    "My printer makes a strange noise, and I have to print a report for my boss before noon.",
    "Explain how a database keeps its promises.",
)
_WORD = re.compile(r"[\"'(]*[A-Za-z]+(['-][A-Za-z]+)*[\"'.,:;!?)]*")


def test_it_is_small_enough_to_ship() -> None:
    assert shipped_model().stat().st_size < 5_000_000


def test_git_and_so_the_wheel_do_not_leave_it_out() -> None:
    repository = Path(__file__).parents[2]
    if not shutil.which("git") or not (repository / ".git").exists():
        pytest.skip("needs git and a checkout")
    ignored = subprocess.run(["git", "check-ignore", shipped_model()], cwd=repository, capture_output=True)
    assert ignored.returncode == 1, ignored.stdout


def test_the_licences_lie_beside_it() -> None:
    folder = shipped_model().parent
    card = (folder / "MODEL_CARD.md").read_text()
    assert "Apache-2.0" in card
    assert "WORDNET-LICENSE.txt" in card
    assert "Princeton University" in (folder / "WORDNET-LICENSE.txt").read_text()


def test_its_header_says_what_it_is(header: dict[str, Any]) -> None:
    assert header["general.architecture"] == "llama"
    assert header["general.name"] == "Tiny"
    assert header["general.license"] == "Apache-2.0"
    assert "Princeton University" in header["general.description"]
    assert header["llama.context_length"] == default_model(None).deployments[0].context_window
    assert "message['role']" in header["tokenizer.chat_template"]


def test_every_byte_has_a_token(header: dict[str, Any]) -> None:
    assert sum(len(token) == 1 for token in header["tokenizer.ggml.tokens"]) == 256


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_it_answers_in_words_and_comes_to_an_end(llama_cpp: LlamaCpp, temperature: float) -> None:
    choices = [llama_cpp.chat(prompt, temperature=temperature) for prompt in PROMPTS]
    answers = [choice["message"]["content"] for choice in choices]
    words = [word for answer in answers for word in answer.split()]
    assert all(len(answer.split()) >= 1 for answer in answers)
    assert sum(bool(_WORD.fullmatch(word)) for word in words) > 0.9 * len(words), answers
    assert sum(choice["finish_reason"] == "stop" for choice in choices) >= len(PROMPTS) - 1
    assert len(set(answers)) >= len(PROMPTS) - 2


def test_it_knows_the_words_of_everyday(llama_cpp: LlamaCpp) -> None:
    assert "fruit" in llama_cpp.say("What is an apple?")
    assert "Paris" in llama_cpp.say("What is the capital of France?")
    assert "children" in llama_cpp.say("What is a school?")


def test_it_says_what_it_is_told_to_say(llama_cpp: LlamaCpp) -> None:
    assert llama_cpp.say("Say hello.").lower().startswith("hello")


def test_a_seed_repeats_an_answer_and_another_one_changes_it(llama_cpp: LlamaCpp) -> None:
    stories = [llama_cpp.say("Tell me a story.", temperature=1.0, seed=seed) for seed in (1, 1, 2, 3)]
    assert stories[0] == stories[1]
    assert len(set(stories)) == 3


def test_a_conversation_with_a_system_message(llama_cpp: LlamaCpp) -> None:
    system = {"role": "system", "content": "You are a helpful assistant."}
    first = llama_cpp.say(system, "Tell me a story about a fox.")
    then = llama_cpp.chat(
        system,
        "Tell me a story about a fox.",
        {"role": "assistant", "content": first},
        {"role": "user", "content": [{"type": "text", "text": "What is a river?"}]},
    )
    assert "fox" in first
    assert "water" in then["message"]["content"]
    assert then["finish_reason"] == "stop"


def test_a_long_conversation_fits_into_its_context(llama_cpp: LlamaCpp) -> None:
    said = itertools.cycle([("What is a dog?", "A dog is an animal."), ("What is a lake?", "A lake is water.")])
    past = [
        {"role": role, "content": text}
        for pair in itertools.islice(said, 35)
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    answer = llama_cpp.chat(*past, "What is an apple?")
    assert "fruit" in answer["message"]["content"]
    assert answer["finish_reason"] == "stop"


def test_it_continues_a_text(llama_cpp: LlamaCpp) -> None:
    answer = llama_cpp.post("/v1/completions", prompt="An apple is", temperature=0, max_tokens=40)
    assert "fruit" in answer["choices"][0]["text"]


def test_alike_texts_have_alike_embeddings(llama_cpp: LlamaCpp, header: dict[str, Any]) -> None:
    texts = ["A dog is an animal.", "A cat is an animal.", "The capital of Spain is Madrid."]
    answer = llama_cpp.post("/v1/embeddings", input=texts)
    dog, cat, spain = (item["embedding"] for item in answer["data"])
    assert len(dog) == header["llama.embedding_length"]
    assert _likeness(dog, cat) > _likeness(dog, spain)


def _likeness(one: list[float], other: list[float]) -> float:
    return sum(map(mul, one, other))  # llama.cpp's embeddings have length 1


@pytest.mark.parametrize(
    "text",
    [
        "Hello, world! It's 10:45, isn't it?",
        "  two  spaces,\ttabs\r\n\r\nand lines \n",
        "Zażółć gęślą jaźń — ελληνικά, русский, עברית, العربية, हिन्दी, 日本語, 한국어",
        "👩‍👩‍👧 🇺🇳 e\u0301 \u00a0\u3000\u200b \x00\x01\x7f \ufeff",
        "<|im_end|> is text when a user writes it",
    ],
)
def test_any_text_comes_back_from_its_tokens(llama_cpp: LlamaCpp, text: str) -> None:
    tokens = llama_cpp.post("/tokenize", content=text, parse_special=False)["tokens"]
    assert llama_cpp.post("/detokenize", tokens=tokens)["content"] == text
