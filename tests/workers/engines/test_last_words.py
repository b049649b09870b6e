"""Why a program ended, as its last lines say it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.engines.last_words import reason

CORE = "(EngineCore pid=7) ERROR 11-25 14:53:15 [core.py:1100] "
CACHE = "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`"
INITIAL = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], None),
        (["INFO started", "ERROR 11-25 [core.py:1100] EngineCore failed to start."], None),
        (["vllm serve: error: unrecognized arguments: --argz"], "error: unrecognized arguments: --argz"),
        (
            ["huggingface_hub.errors.RepositoryNotFoundError: 404 Client Error."],
            "RepositoryNotFoundError: 404 Client Error",
        ),
        ([f"{CORE}{CACHE}.", "Traceback (most recent call last):", "  File x", f"(APIServer pid=1) {INITIAL}"], CACHE),
        (["OSError: [Errno 98] Address already in use", "INFO bye"], "OSError: [Errno 98] Address already in use"),
        ([INITIAL], None),
        (
            [
                "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig",
                "  Value error, max_model_len (4096) is greater than 2048 [type=value_error, input_value=ArgsKwargs(",
                "    For further information visit https://errors.pydantic.dev",
            ],
            "ValidationError: 1 validation error for ModelConfig "
            "Value error, max_model_len (4096) is greater than 2048",
        ),
    ],
)
def test_the_last_error_that_says_what_was_wrong(lines: list[str], expected: str | None) -> None:
    assert reason(lines) == expected


@given(st.lists(st.text(max_size=600) | st.just(f"KeyError: {'x' * 900}"), max_size=6))
def test_it_is_short_whatever_was_written(lines: list[str]) -> None:
    said = reason(lines)
    assert said is None or 0 < len(said) <= 400
