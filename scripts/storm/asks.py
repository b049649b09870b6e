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
#: Every third batch, and the first, goes to a model that has a provider's batch API, but for lines that may not leave.
_BATCH, FIRST_LINE = 100, 1_000_000
_TEXT = re.compile(r"ask-(\d+)-([a-z]+)")
_ANSWER = re.compile(r"ask-(\d+) (g[0-9a-f]+)((?: \d+)*)")
MOCK_ANSWER = " ".join(["tok"] * MOCK_TOKENS)


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
    def hedged(self) -> bool:
        """Asked under a policy that tries a late job at a second place, too."""
        return self.kind in ("chat", "stream") and self.model == "hosted" and self.n % 20 < 10

    @property
    def key(self) -> str:
        return f"key-{self.n}"

    def body(self) -> dict[str, Any]:
        """As an OpenAI client sends it."""
        options: dict[str, Any] = {"privacy": self.label}
        if self.model != "quick":
            options["policy"] = "steady" if self.hedged else "cloud-first"
        if self.kind == "line" and self.model == "patient":
            options["policy"] = "cheapest"
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
    deadline_s = 300.0 if n % 7 == 0 and not line and not doomed(n) else None
    label = _LABELS[n % 3]
    patient = line and (n - FIRST_LINE) // _BATCH % 3 == 0 and label != "restricted"
    return Ask(n, kind, "patient" if patient else _MODELS[n // 3 % 2], label, deadline_s)


def doomed(n: int) -> bool:
    """Whether its only place fails it until it has been parked and replayed. These are submitted jobs."""
    return n % 60 == 23


def slow(n: int) -> bool:
    """Whether the first to generate it takes so long, to its first token where it streams, that a second try is due."""
    return ask(n).hedged and n % 9 == 3


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
    if text == MOCK_ANSWER:
        return Answer(None, "")
    found = _ANSWER.fullmatch(text)
    if found is None:
        return None
    n, words = int(found[1]), found[3].split()
    return Answer(n, found[2]) if words == answer_words(n, found[2])[2:] else None
