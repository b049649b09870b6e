"""What becomes of a failed attempt."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.contracts.errors import (
    Cancelled,
    ConfigError,
    ContextOverflow,
    DeadlineExceeded,
    EngineError,
    EngineRejected,
    EngineUnavailable,
    FabricError,
    InvalidRequest,
    NoEligibleDeployment,
    ProviderError,
    StreamBroken,
)
from workers.retries import MAX_FAILURES, Disposition, dispose


@pytest.mark.parametrize("error", [InvalidRequest, ContextOverflow, EngineRejected, NoEligibleDeployment, Cancelled])
def test_what_the_caller_or_a_policy_has_caused_ends_at_once(error: type[FabricError]) -> None:
    assert dispose(error("no").info, 1) == Disposition("fail")


@pytest.mark.parametrize("error", [EngineError, EngineUnavailable, ProviderError])
def test_what_may_pass_is_tried_again(error: type[FabricError]) -> None:
    assert [dispose(error("no").info, n).action for n in (1, 2, 3, 4)] == ["retry", "retry", "park", "park"]


@pytest.mark.parametrize("error", [StreamBroken, ConfigError, DeadlineExceeded])
def test_what_cannot_pass_ends(error: type[FabricError]) -> None:
    assert dispose(error("no").info, 1) == Disposition("fail")


def test_what_could_run_elsewhere_is_parked_rather_than_lost() -> None:
    class KeyRefused(ProviderError):
        retry = False

    assert dispose(KeyRefused("no").info, 1) == Disposition("park")


def test_the_providers_own_delay_wins() -> None:
    assert dispose(ProviderError("slow down", retry_after_s=2.5).info, 1) == Disposition("retry", 2_500)


@pytest.mark.parametrize(("asked_s", "waited_ms"), [(-1, 0), (86_400, 300_000)])
def test_within_reason(asked_s: float, waited_ms: int) -> None:
    assert dispose(ProviderError("slow down", retry_after_s=asked_s).info, 1) == Disposition("retry", waited_ms)


def test_a_provider_that_asks_for_time_gets_no_more_tries_than_others() -> None:
    assert dispose(ProviderError("slow down", retry_after_s=1).info, MAX_FAILURES).action == "park"


@given(st.integers(1, MAX_FAILURES - 1), st.integers())
def test_the_delay_grows_and_is_spread_out(failures: int, seed: int) -> None:
    delay = dispose(EngineError("no").info, failures, random_=random.Random(seed)).delay_ms
    assert 0 <= delay <= 200 * 2 ** (failures - 1)
