"""Why a program ended, from the last lines that it wrote. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

#: ``ValueError: …`` of a traceback, ``vllm serve: error: …`` of a command line.
_ERROR = re.compile(r"(?:^|[\s.])((?:[A-Z]\w*(?:Error|Exception)|error): .+)$")
#: Errors that only say that there was another one.
_ELSEWHERE = re.compile("see (the )?(root cause|stack ?trace|traceback|error|logs?)", re.IGNORECASE)
#: Pydantic says what is wrong in the next line, and then what it was given.
_NEXT = re.compile(r"validation errors? for ")
_GIVEN = re.compile(r"\s*\[type=.*$")
_LONGEST = 400


def reason(lines: Sequence[str]) -> str | None:
    """The last error among ``lines`` that says what was wrong; ``None`` where none does."""
    for at in range(len(lines) - 1, -1, -1):
        found = _ERROR.search(lines[at])
        if found is None or _ELSEWHERE.search(found[1]):
            continue
        said = found[1]
        if _NEXT.search(said):
            said = " ".join((said, *(_GIVEN.sub("", line).strip() for line in lines[at + 1 : at + 2])))
        said = said.strip().rstrip(".")
        return said if len(said) <= _LONGEST else f"{said[: _LONGEST - 1]}…"
    return None
