"""What redaction took out of a job's text goes back into its answer, on its way to the caller."""

from __future__ import annotations

from dataclasses import replace

from fabric.contracts.payload import load_placeholders
from fabric.gateway.follow import Event
from fabric.privacy import Placeholders, StreamRestorer

_TOKEN = b'{"type":"token","chunk":'


class Restoring:
    """One reader of one job. Costs nothing where nothing was redacted."""

    def __init__(self, placeholders: bytes) -> None:
        """``placeholders``: of the job, opened."""
        self._placeholders = Placeholders(load_placeholders(placeholders)) if placeholders else None
        self._stream = StreamRestorer(self._placeholders) if self._placeholders else None

    @property
    def needed(self) -> bool:
        return self._placeholders is not None

    def result(self, result: bytes) -> bytes:
        return result if self._placeholders is None else self._placeholders.restored(result)

    def events(self, events: list[Event], *, after: int = 0) -> list[Event]:
        """Those behind number ``after``, each with its text put back. All before them must have been here.

        What a stream still held when it ended goes before its last event, under the number of the one before
        that: who comes back after it gets it again rather than never.
        """
        if self._stream is None:
            return events
        told = []
        for event in events:
            rest = self._stream.rest() if event.final else None
            body = self._stream.event(event.body)
            if event.number <= after:
                continue
            if rest is not None:
                told.append(Event(event.number - 1, _TOKEN + rest + b"}"))
            told.append(replace(event, body=body))
        return told
