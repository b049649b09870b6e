"""The client's pure part for what comes in pieces: events, streamed answers, lines, and waiting for them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fabric._client_wire import Call, error_from, passing
from fabric.contracts.errors import FabricError, StreamBroken
from fabric.contracts.job import ENDED

#: The end of a streamed answer.
DONE = b"[DONE]"
#: The fabric says something every 15 s; silence of twice that is a dead connection.
_SILENCE_S = 30.0
#: How long a fabric that can't be reached is tried again.
PATIENCE_S = 60.0
_PAUSE_S, _PAUSE_LIMIT_S = 0.1, 2.0


def _text(body: Mapping[str, Any]) -> str:
    for choice in body.get("choices", ()):
        return (choice.get("delta") or {}).get("content") or choice.get("text") or ""
    return ""


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a streamed answer. ``body`` is OpenAI's chunk."""

    body: dict[str, Any]

    @property
    def text(self) -> str:
        return _text(self.body)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a job. ``number`` counts from 1; ``data`` has ``type`` and what goes with it."""

    number: int
    data: dict[str, Any]

    @property
    def type(self) -> str:
        return str(self.data.get("type", ""))

    @property
    def final(self) -> bool:
        return self.type in ENDED

    @property
    def text(self) -> str:
        """Of a ``token`` event: its piece of the answer."""
        return _text(self.data.get("chunk") or {})


def piece(data: bytes) -> Piece:
    """
    Raises:
        FabricError: the stream ends with an error.
    """
    body = json.loads(data)
    if "error" in body:
        raise error_from(body["error"], 0)
    return Piece(body)


def event(identifier: str, data: bytes) -> Event:
    return Event(int(identifier or 0), json.loads(data))


def cut_off() -> FabricError:
    return StreamBroken("The stream ended before the answer did.")


class Lines:
    """Cuts bytes into lines at line feeds only: other characters that count as line ends in Unicode
    may stand in the text of an answer."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Whole lines, without their ends and without empty ones."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [line for line in lines if line.strip()]

    def end(self) -> list[bytes]:
        """A last line that had no end."""
        rest, self._rest = self._rest, b""
        return [rest] if rest.strip() else []


class ServerSentEvents:
    """Reads server-sent events out of bytes, in whatever pieces they come."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._id = ""

    def feed(self, data: bytes) -> Iterator[tuple[str, bytes]]:
        """Whole events: (id, data)."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            name, _, value = line.removesuffix(b"\r").partition(b":")
            value = value.removeprefix(b" ")
            if name == b"data":
                self._data.append(value)
            elif name == b"id":
                self._id = value.decode()
            elif name == b"" and value == b"" and self._data:
                yield self._id, b"\n".join(self._data)
                self._data = []


class Deadline:
    """``None``: never."""

    def __init__(self, timeout_s: float | None) -> None:
        self._at = None if timeout_s is None else time.monotonic() + timeout_s

    @property
    def left_s(self) -> float:
        return float("inf") if self._at is None else max(0.0, self._at - time.monotonic())

    def check(self, message: str) -> None:
        """
        Raises:
            TimeoutError: it has passed.
        """
        if self.left_s <= 0:
            raise TimeoutError(message)


def pauses() -> Iterator[float]:
    """Seconds between looks at something that has no events: short at first."""
    pause = _PAUSE_S
    while True:
        yield pause
        pause = min(_PAUSE_LIMIT_S, pause * 1.5)


class Reading:
    """How far a reader of a job's events has come, and when it asks again or gives up."""

    def __init__(self, job_id: str, after: int, timeout_s: float | None) -> None:
        self.ended = False
        #: How long to wait before asking again.
        self.pause_s = 0.0
        self._job_id = job_id
        self._after = after
        self._deadline = Deadline(timeout_s)
        self._granted_s = _SILENCE_S
        self._pauses = pauses()
        self._patience = Deadline(PATIENCE_S)

    def call(self) -> Call:
        headers = {"Last-Event-ID": str(self._after)} if self._after else {}
        return Call("GET", f"/v1/jobs/{self._job_id}/events", headers=headers)

    def silence_s(self) -> float:
        """How long this asking may hear nothing."""
        self._granted_s = max(0.05, min(_SILENCE_S, self._deadline.left_s))
        return self._granted_s

    @property
    def too_patient(self) -> bool:
        """Whether this asking would listen past the deadline if nothing more came."""
        return self._deadline.left_s < self._granted_s - 1

    def take(self, event: Event) -> bool:
        """Whether the event is new."""
        self._pauses, self._patience = pauses(), Deadline(PATIENCE_S)
        if event.number <= self._after:
            return False
        self._after = event.number
        self.ended = event.final
        return True

    def broke_off(self) -> None:
        """The stream is over. Raises ``TimeoutError`` as ``failed`` does."""
        self._check()
        self.pause_s = 0.0 if self.ended or self.too_patient else next(self._pauses)

    def failed(self, error: FabricError) -> None:
        """
        Raises:
            TimeoutError: the time is up.
            FabricError: ``error``, when asking again won't help.
        """
        self._check()
        if not passing(error) or self._patience.left_s <= 0:
            raise error
        self.pause_s = next(self._pauses)

    def _check(self) -> None:
        if not self.ended:
            self._deadline.check(f"The job {self._job_id} hasn't ended yet.")
