"""Workloads: which requests are sent, how many, how many at once. Pure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fabric.contracts.errors import ConfigError

_WORDS = "The harbour master writes down every ship that comes in, with its load and the hour. "


class Workload(BaseModel):
    """``requests`` of them for each deployment and concurrency; bodies are taken in turn."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, max_length=64)
    bodies: tuple[dict[str, Any], ...] = Field(min_length=1)
    concurrency: tuple[int, ...] = Field((1, 4), min_length=1)
    requests: int = Field(20, ge=1, le=100_000)


def _chat(text: str, max_tokens: int, **options: Any) -> dict[str, Any]:
    asked = {"messages": [{"role": "user", "content": text}], "max_tokens": max_tokens, "temperature": 0}
    return {**asked, **({"fabric": options} if options else {})}


BUILT_IN = {
    "chat": Workload(
        name="chat", bodies=(_chat("What does a tide table show?", 64), _chat("Why does iron float in mercury?", 64))
    ),
    "long-prompt": Workload(
        name="long-prompt", bodies=(_chat(_WORDS * 60 + "What does he write down?", 16),), concurrency=(1, 2)
    ),
    "batch": Workload(
        name="batch",
        bodies=(_chat(_WORDS + "Answer with one word: what comes in?", 8, priority="batch"),),
        concurrency=(8,),
    ),
}


def read(name: str) -> Workload:
    """A built-in one, or a JSON file.

    Raises:
        ConfigError: there is no such file, or it is none.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    try:
        return Workload.model_validate({"name": Path(name).stem, **orjson.loads(Path(name).read_bytes())})
    except OSError as error:
        built_in = ", ".join(BUILT_IN)
        raise ConfigError(f"There is no workload {name} ({error.strerror}): give a file, or {built_in}.") from None
    except (ValidationError, orjson.JSONDecodeError, TypeError):
        raise ConfigError(
            f"{name} is no workload: it is a JSON object with `bodies` (chat requests without `model`), and may have "
            "`concurrency` (numbers) and `requests`."
        ) from None
