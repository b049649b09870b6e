"""Long pieces of work that go on a step at a time, a few beside each other in one thread."""

from __future__ import annotations

from collections.abc import Iterator

#: Files that are read or written at once. More share the time, each holds a little memory.
AT_ONCE = 4


class Works:
    """Generators by name. Each does a bounded piece at every step; what it holds is let go when it is dropped."""

    def __init__(self, at_once: int = AT_ONCE) -> None:
        self._at_once = at_once
        self._works: dict[str, Iterator[None]] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._works))

    def begin(self, name: str, work: Iterator[None]) -> None:
        """Not if it has one already or there are enough: then it is for another time."""
        if name not in self._works and len(self._works) < self._at_once:
            self._works[name] = work

    def step(self, name: str) -> None:
        """A work that raises is over, as one that has come to its end."""
        work = self._works.pop(name)
        try:
            next(work)
        except StopIteration:
            return
        self._works[name] = work

    def drop(self, name: str) -> None:
        self._works.pop(name, None)

    def drop_all(self) -> None:
        self._works.clear()
