"""What is asked of the fabric: each request is known by its number, and so is what must come back."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["chat", "stream", "job", "cancelled", "line"]
Label = Literal["public", "internal", "restricted"]

CHAT = "/v1/chat/completions"
#: Tokens of every answer of the mock engine on the gpu tier.
MOCK_TOKENS = 8
_KINDS: tuple[Kind, ...] = ("chat", "stream", "chat", "job", "stream", "chat", "job", "chat", "stream", "cancelled")
_LABELS: tuple[Label, ...] = ("internal", "public", "restricted")
_MODELS = ("quick", "hosted")
_TEXT = re.compile(r"ask-(\d+)-([a-z]+)")
_ANSWER = re.compile(r"ask-(\d+) (g[0-9a-f]+)((?: \d+)*)")
_MOCK_ANSWER = " ".join(["tok"] * MOCK_TOKENS)


@dataclass(frozen=True, slots=True)
class Ask:
    """``deadline_s``: seconds from its acceptance."""

    n: int
    kind: Kind
    model: str
    label: Label
    deadline_s: float | None = None

    @property
    def text(self) -> str:
        return f"ask-{self.n}-{self.label}"

    @property
    def key(self) -> str:
        return f"key-{self.n}"

    def body(self) -> dict[str, Any]:
        """As an OpenAI client sends it."""
        options: dict[str, Any] = {"privacy": self.label}
        if self.model == "hosted":
            options["policy"] = "cloud-first"
        if self.deadline_s is not None:
            options["deadline_s"] = self.deadline_s
        values = {
            "model": self.model,
            "messages": [{"role": "user", "content": self.text}],
            "max_tokens": 16,
            "fabric": options,
        }
        return (
            {**values, "stream": True, "stream_options": {"include_usage": True}} if self.kind == "stream" else values
        )


def ask(n: int, *, line: bool = False) -> Ask:
    """The request of that number. Every seventh has a deadline that only a wrong clock could miss."""
    kind: Kind = "line" if line else _KINDS[n % len(_KINDS)]
    deadline_s = 300.0 if n % 7 == 0 and not line else None
    return Ask(n, kind, _MODELS[n // 3 % 2], _LABELS[n % 3], deadline_s)


def tokens(n: int) -> tuple[int, int]:
    """Of prompt and answer, as the played engines count them: others for each of many requests."""
    return 10 + n % 7, 3 + n % 5


def asked(text: str) -> tuple[int, str] | None:
    """Number and label of the request that this is the prompt of."""
    found = _TEXT.search(text)
    return (int(found[1]), found[2]) if found else None


def answer_words(n: int, generation: str) -> list[str]:
    """What a played engine says. Joined by spaces it is the answer; streamed it is one piece each."""
    return [f"ask-{n}", generation, *map(str, range(tokens(n)[1]))]


@dataclass(frozen=True, slots=True)
class Answer:
    """``generation``: empty for the mock engine, whose answers are all alike."""

    n: int | None
    generation: str


def read_answer(text: str) -> Answer | None:
    """``None`` unless it is one whole answer in one voice."""
    if text == _MOCK_ANSWER:
        return Answer(None, "")
    found = _ANSWER.fullmatch(text)
    if found is None:
        return None
    n, words = int(found[1]), found[3].split()
    return Answer(n, found[2]) if words == answer_words(n, found[2])[2:] else None
