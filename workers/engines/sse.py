"""Server-sent events, as much of them as APIs use: the payloads of ``data:`` lines. Pure.

An event's type is left out: providers repeat it inside of their JSON. (HTML living standard, 9.2.6.)
"""

from __future__ import annotations


class TooLong(ValueError):
    """An event doesn't end within the limit."""


class EventParser:
    """``feed`` takes bytes as they come from the network, and gives the payloads of the events they complete."""

    def __init__(self, limit: int) -> None:
        """``limit``: bytes that one event may have."""
        self._limit = limit
        self._rest = b""  # a line that isn't complete
        self._lines: list[bytes] = []  # ``data:`` lines of the event that isn't complete
        self._size = 0
        self._started = False

    def feed(self, data: bytes) -> list[bytes]:
        """
        Raises:
            TooLong: an event outgrew the limit.
        """
        if not self._started:
            if len(self._rest) + len(data) < 3:  # a byte order mark may be cut
                self._rest += data
                return []
            data, self._rest, self._started = (self._rest + data).removeprefix(b"\xef\xbb\xbf"), b"", True
        if b"\r" in data or self._rest.endswith(b"\r"):
            return self._feed_any(data)
        return self._feed_lines(data)

    def end(self) -> list[bytes]:
        """At the end of the stream: the last event, where its blank line is missing."""
        return self._feed_any(b"\n\n")

    def _feed_lines(self, data: bytes) -> list[bytes]:
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        return self._take(lines)

    def _feed_any(self, data: bytes) -> list[bytes]:
        """Lines may also end in CR LF or in CR; a CR at the very end waits for what follows."""
        data = self._rest + data
        held = b"\r" if data.endswith(b"\r") else b""
        lines = data.removesuffix(b"\r").replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._rest = lines.pop() + held
        return self._take(lines)

    def _take(self, lines: list[bytes]) -> list[bytes]:
        events = []
        for line in lines:
            if not line:
                if self._lines:
                    events.append(self._lines[0] if len(self._lines) == 1 else b"\n".join(self._lines))
                    self._lines = []
                    self._size = 0
            elif line.startswith(b"data:"):
                payload = line[6:] if line.startswith(b"data: ") else line[5:]
                self._lines.append(payload)
                self._size += len(payload) + 1  # empty lines count, too: there is no end of them otherwise
        if self._size + len(self._rest) > self._limit:
            raise TooLong
        return events
