"""What the benchmarks ask: chat requests of about 1 KB, as long as the job of the Celery baseline."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

_TEXT = "the quick brown fox jumps over the lazy dog and runs along the river bank "
_BYTES = 1_000


def body(model: str, number: int = 0) -> str:
    empty = json.dumps({"model": model, "messages": [{"role": "user", "content": f"{number} "}]})
    room = _BYTES - len(empty)
    text = f"{number} " + (_TEXT * (room // len(_TEXT) + 1))[:room]
    return json.dumps({"model": model, "messages": [{"role": "user", "content": text}]})


def bodies(model: str, count: int = 16) -> list[str]:
    return [body(model, number) for number in range(count)]


def write_batch(path: Path, model: str, lines: int) -> None:
    path.write_text("".join(_lines(model, lines)))


def _lines(model: str, lines: int) -> Iterator[str]:
    asked = body(model)
    for number in range(lines):
        yield f'{{"custom_id": "line-{number}", "method": "POST", "url": "/v1/chat/completions", "body": {asked}}}\n'
