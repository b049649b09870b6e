"""What a deployment is asked to show: small requests whose answers can be judged without knowing the model.

Every request is pinned to the deployment, labelled public (its text is written here), and tried by the
fabric as any other: what is checked is the whole way, not the engine alone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from fabric import _client_stream as streams
from fabric import _client_wire as wire
from fabric._client_http import Http
from fabric._client_wire import Call
from fabric.contracts.errors import ContextOverflow, FabricError, NotFound, Unavailable
from fabric.contracts.tokens import estimate_tokens

State = Literal["passed", "failed", "unchecked"]

_CHAT, _COMPLETIONS, _EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
_PROMPT = {"/v1/chat/completions": "What is a river?", "/v1/completions": "A river is"}
_TOKENS = 32
#: As many token ids as this are sent as a prompt. Low ones: every vocabulary has them.
_IDS = list(range(40, 72))
_WORD = "river "
#: Tokens of the window that a filled one leaves for its answer and for what can't be told beforehand.
_MARGIN = 48
#: What the gateway takes is limited, too.
_LONGEST_CHARS = 4_000_000
#: The status of what the caller is to blame for: here, of an option that a deployment doesn't take.
_REFUSED = 400
_COLOUR = "Name the colour of grass, as JSON."
_COLOURS = ("red", "green", "blue")
_OBJECT_TOKENS = 96
_SCHEMA = {
    "type": "object",
    "properties": {"colour": {"type": "string", "enum": list(_COLOURS)}, "sure": {"type": "boolean"}},
    "required": ["colour", "sure"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class Check:
    """``unchecked``: it couldn't be found out there; ``detail`` says why."""

    name: str
    state: State
    detail: str
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Said:
    """One answer, streamed or not."""

    text: str
    finish: str | None
    usage: dict[str, Any]
    deployment: str | None = None
    body: dict[str, Any] | None = None

    @property
    def counts(self) -> tuple[int | None, int | None]:
        """Tokens of prompt and answer, as reported."""
        return self.usage.get("prompt_tokens"), self.usage.get("completion_tokens")


class Failed(Exception):
    """The check has failed. ``str``: what was wrong."""


class Unknown(Exception):
    """The check can't be made here. ``str``: why."""


def find(http: Http, deployment: str) -> dict[str, Any]:
    """The deployment as ``GET /v1/tiers`` shows it, with its tier.

    Raises:
        NotFound: the fabric has no such deployment.
        Unavailable: nobody works there.
    """
    tiers = json.loads(http.send(Call("GET", "/v1/tiers")).body)["data"]
    places = {place["name"]: {**place, "tier": tier["tier"]} for tier in tiers for place in tier["deployments"]}
    if deployment not in places:
        known = ", ".join(sorted(places)) or "none"
        raise NotFound(f"There is no deployment {deployment!r}; there are: {known}.")
    place: dict[str, Any] = places[deployment]
    if not place["workers"]:
        raise Unavailable(f"No worker serves {deployment!r}: start one with `fabric worker {place['tier']}`.")
    return place


class Subject:
    """The deployment under test."""

    def __init__(self, http: Http, place: dict[str, Any], timeout_s: float) -> None:
        self.name: str = place["name"]
        self.window: int = place["context_window"]
        self.capabilities: frozenset[str] = frozenset(place["capabilities"])
        self.writes = bool(self.capabilities & {"chat", "completions"})
        self.endpoint = _CHAT if "chat" in self.capabilities else _COMPLETIONS
        #: How answers are made repeatable; less where the deployment doesn't take it.
        self.sampling: dict[str, Any] = {"temperature": 0, "seed": 7}
        self._http = http
        self._fixed = {
            "model": place["model"],
            "fabric": {"deployment": self.name, "privacy": "public", "deadline_s": timeout_s},
        }

    def ask(self, prompt: str | None = None, *, stream: bool = False, **fields: Any) -> Said:
        """
        Raises:
            FabricError: why there is no answer.
        """
        text = prompt or _PROMPT[self.endpoint]
        question = {"messages": [{"role": "user", "content": text}]} if self.endpoint == _CHAT else {"prompt": text}
        body = {**question, "max_tokens": _TOKENS, **self.sampling, **fields}
        return self._streamed(body) if stream else self.post(self.endpoint, body)

    def post(self, endpoint: str, body: dict[str, Any]) -> Said:
        response = self._http.send(wire.create(endpoint, {**self._fixed, **body}))
        answer = wire.answer(response.body, response.headers)
        choices = answer.body.get("choices") or [{}]
        return Said(answer.text, choices[0].get("finish_reason"), answer.usage, answer.deployment, answer.body)

    def _streamed(self, body: dict[str, Any]) -> Said:
        asked = {**self._fixed, **body, "stream": True, "stream_options": {"include_usage": True}}
        decoder = streams.ServerSentEvents()
        said = Said("", None, {})
        with self._http.stream(wire.create(self.endpoint, asked)) as chunks:
            for chunk in chunks:
                for _, data in decoder.feed(chunk):
                    if data == streams.DONE:
                        return said
                    piece = streams.piece(data)
                    choices = piece.body.get("choices") or [{}]
                    said = replace(
                        said,
                        text=said.text + piece.text,
                        finish=choices[0].get("finish_reason") or said.finish,
                        usage=piece.body.get("usage") or said.usage,
                    )
        raise streams.cut_off()


def suite(subject: Subject, *, fill: int | None) -> Iterator[Check]:
    """Every check once. ``fill``: tokens of the context window to fill at most; ``None``: all of it."""
    if not subject.writes:
        yield from _embeddings(subject)
        return
    memory = _Memory()
    checks: tuple[tuple[str, Callable[[], str]], ...] = (
        ("round_trip", lambda: _round_trip(subject, memory)),
        ("determinism", lambda: _determinism(subject, memory)),
        ("json_schema", lambda: _json_schema(subject)),
        ("context_limit", lambda: _context_limit(subject, fill)),
        ("stop", lambda: _stop(subject, memory)),
        ("stream", lambda: _stream(subject, memory)),
        ("usage", lambda: _usage(subject, memory)),
        ("tokenizer", lambda: _tokenizer(subject)),
    )
    for name, check in checks:
        yield _made(name, check)


@dataclass(slots=True)
class _Memory:
    """What earlier checks have found: later ones need not ask again."""

    first: Said | None = None
    repeatable: bool = False
    streamed: Said | None = None

    @property
    def answer(self) -> Said:
        if self.first is None:
            raise Unknown("there was no first answer to compare with")
        return self.first


def _made(name: str, check: Callable[[], str]) -> Check:
    started = time.perf_counter()
    state: State = "passed"
    try:
        detail = check()
    except Failed as failed:
        state, detail = "failed", str(failed)
    except Unknown as unknown:
        state, detail = "unchecked", str(unknown)
    except FabricError as error:
        state, detail = "failed", f"{error.error_code}: {error.message}"
    return Check(name, state, detail, time.perf_counter() - started)


def _round_trip(subject: Subject, memory: _Memory) -> str:
    said = None
    while said is None:
        try:
            said = subject.ask()
        except FabricError as error:
            if error.status != _REFUSED or error.param not in subject.sampling:
                raise
            subject.sampling = {name: value for name, value in subject.sampling.items() if name != error.param}
    if said.deployment != subject.name:
        raise Failed(f"the answer came from {said.deployment}")
    if not said.text:
        raise Failed("the answer is empty")
    memory.first = said
    return f"an answer of {said.counts[1]} tokens"


def _determinism(subject: Subject, memory: _Memory) -> str:
    texts = {memory.answer.text, subject.ask().text, subject.ask().text}
    memory.repeatable = len(texts) == 1
    missing = [name for name in ("temperature", "seed") if name not in subject.sampling]
    if missing:
        raise Unknown(f"the deployment takes no {' and no '.join(missing)}")
    if not memory.repeatable:
        raise Failed(f"{len(texts)} different answers to 3 equal requests with temperature 0 and a seed")
    return "3 equal answers with temperature 0 and a seed"


def _json_schema(subject: Subject) -> str:
    if "json_schema" not in subject.capabilities or subject.endpoint != _CHAT:
        raise Unknown("the deployment doesn't have the capability json_schema")
    said = subject.ask(_COLOUR, response_format=_held_to(_SCHEMA), max_tokens=_OBJECT_TOKENS)
    if said.finish == "length":
        return _one_word(subject)
    try:
        value = json.loads(said.text)
    except ValueError:
        raise Failed(f"the answer isn't JSON (it ended with {said.finish})") from None
    if not isinstance(value, dict) or set(value) != {"colour", "sure"}:
        raise Failed("the answer doesn't have the schema's fields")
    if value["colour"] not in _COLOURS or not isinstance(value["sure"], bool):
        raise Failed("a value isn't what the schema permits")
    return "the answer is valid"


def _one_word(subject: Subject) -> str:
    """JSON has room for spaces between its parts, and some models don't stop writing them: an object that was cut shows
    nothing. In a single word there is no such room."""
    cut = f"an object was cut after {_OBJECT_TOKENS} tokens"
    try:
        said = subject.ask(_COLOUR, response_format=_held_to({"type": "string", "enum": list(_COLOURS)}))
    except FabricError as error:
        if error.status != _REFUSED:
            raise
        raise Unknown(f"{cut}, and the deployment takes no schema of one word ({error.error_code})") from None
    if said.text.strip() not in [f'"{colour}"' for colour in _COLOURS]:
        raise Failed(f"{cut}, and an answer of one word isn't one that the schema permits")
    return f"an answer of one word is valid; {cut}"


def _held_to(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}


def _context_limit(subject: Subject, fill: int | None) -> str:
    refused = _too_long(subject)
    few, many = (subject.ask(_WORD * words, max_tokens=1).counts[0] for words in (8, 40))
    if few is None or many is None or many <= few:
        raise Unknown("the deployment doesn't report what a prompt takes")
    per_word = (many - few) / 32
    room = min(subject.window, subject.window if fill is None else fill) - _MARGIN
    # Neither by the model's own count nor by the fabric's estimate more than there is.
    words = int(min((room - few) / per_word, room / estimate_tokens(_WORD * 100) * 100))
    if words <= 40:
        return f"{refused}; the window is too small to be filled"
    expected = few + per_word * (words - 8)
    try:
        counted = subject.ask(_WORD * words, max_tokens=1).counts[0] or 0
    except ContextOverflow:
        problem = f"a prompt of about {expected:.0f} tokens is refused; the window should hold {subject.window}"
        raise Failed(problem) from None
    if abs(counted - expected) > max(8, 0.05 * expected):
        raise Failed(f"of a prompt of about {expected:.0f} tokens {counted} were read: it was cut or changed")
    return f"{refused}; one of {counted} of {subject.window} tokens is read to its end"


def _too_long(subject: Subject) -> str:
    text = _WORD * (2 * subject.window)
    if len(text) > _LONGEST_CHARS:
        return "the window is larger than the longest request"
    try:
        subject.ask(text, max_tokens=1)
    except ContextOverflow:
        return "a longer prompt is refused"
    raise Failed("a prompt of twice the context window was answered")


def _stop(subject: Subject, memory: _Memory) -> str:
    whole = memory.answer.text
    words = [word for word in whole.split()[1:] if len(word) > 1]
    later = [word for word in words if whole.find(word) > 0]
    if not later:
        raise Unknown("the answer is too short to be stopped in the middle")
    stop = later[len(later) // 2]
    said = subject.ask(stop=[stop])
    if stop in said.text:
        raise Failed("the answer goes on behind the stop sequence, or holds it")
    if not memory.repeatable:
        raise Unknown("answers aren't repeatable: where this one should end isn't known")
    if said.text.rstrip() != whole[: whole.index(stop)].rstrip():
        raise Failed("the answer doesn't end where the stop sequence begins")
    if said.finish != "stop":
        raise Failed(f"finish_reason is {said.finish}, not stop")
    return "the answer ends where the stop sequence begins"


def _stream(subject: Subject, memory: _Memory) -> str:
    whole = memory.answer
    said = subject.ask(stream=True)
    memory.streamed = said
    if not said.text:
        raise Failed("the stream holds no text")
    if not memory.repeatable:
        raise Unknown("answers aren't repeatable: the two can't be compared")
    if said.text != whole.text:
        raise Failed("the streamed text isn't that of the whole answer")
    if said.finish != whole.finish:
        raise Failed(f"finish_reason is {said.finish} when streamed, else {whole.finish}")
    return "the same text and finish_reason as the whole answer"


def _usage(subject: Subject, memory: _Memory) -> str:
    whole, streamed = memory.answer, memory.streamed
    if None in whole.counts:
        raise Failed("the answer comes without its usage")
    if streamed is not None:
        if streamed.counts[0] != whole.counts[0]:
            raise Failed(f"{streamed.counts[0]} prompt tokens when streamed, else {whole.counts[0]}")
        if memory.repeatable and streamed.counts != whole.counts:
            raise Failed(f"{streamed.counts[1]} answer tokens when streamed, else {whole.counts[1]}")
    short = subject.ask(max_tokens=4)
    if short.finish != "length":
        raise Unknown("streamed and whole agree; no answer came to its limit, so that nothing is known to count")
    if short.counts[1] != 4:
        raise Failed(f"an answer cut after 4 tokens counts {short.counts[1]}")
    return "the same when streamed; an answer cut after 4 tokens counts 4"


def _tokenizer(subject: Subject) -> str:
    """Token ids need no tokenizer: what they count is known."""
    if "completions" not in subject.capabilities:
        raise Unknown("only completions take token ids, and the deployment has none")
    try:
        said = subject.post(_COMPLETIONS, {"prompt": _IDS, "max_tokens": 1})
    except FabricError as error:
        raise _no_ids(error) from None
    if said.counts[0] != len(_IDS):
        raise Failed(f"a prompt of {len(_IDS)} token ids counts {said.counts[0]}")
    return f"a prompt of {len(_IDS)} token ids counts {len(_IDS)}"


def _no_ids(error: FabricError) -> Exception:
    return Unknown(f"the deployment takes no token ids ({error.error_code})") if error.status == _REFUSED else error


def _embeddings(subject: Subject) -> Iterator[Check]:
    answers: list[Said] = []

    def ask(text: str | list[int]) -> Said:
        said = subject.post(_EMBEDDINGS, {"input": text})
        answers.append(said)
        return said

    def vector(said: Said) -> list[float]:
        found: list[float] = (said.body or {})["data"][0]["embedding"]
        return found

    def round_trip() -> str:
        said = ask("A river.")
        if said.deployment != subject.name:
            raise Failed(f"the answer came from {said.deployment}")
        if not any(vector(said)):
            raise Failed("the embedding is empty, or all zeros")
        return f"an embedding of {len(vector(said))} numbers"

    def determinism() -> str:
        if not answers:
            raise Unknown("there was no first answer to compare with")
        first, second = vector(answers[0]), vector(ask("A river."))
        if len(first) != len(second) or max(abs(a - b) for a, b in zip(first, second, strict=True)) > 1e-4:
            raise Failed("two equal texts have different embeddings")
        return "two equal texts have the same embedding"

    def tokenizer() -> str:
        try:
            counted = ask(_IDS).counts[0]
        except FabricError as error:
            raise _no_ids(error) from None
        if counted != len(_IDS):
            raise Failed(f"{len(_IDS)} token ids count {counted}")
        return f"{len(_IDS)} token ids count {len(_IDS)}"

    for name, check in (("round_trip", round_trip), ("determinism", determinism), ("tokenizer", tokenizer)):
        yield _made(name, check)
    for name in ("json_schema", "context_limit", "stop", "stream", "usage"):
        yield Check(name, "unchecked", "the deployment makes embeddings only")
