"""What becomes of a failed attempt."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.contracts.errors import (
    Cancelled,
    ConfigError,
    ContentRefused,
    ContextOverflow,
    DeadlineExceeded,
    EngineAway,
    EngineError,
    EngineRejected,
    EngineUnavailable,
    EngineUnsupported,
    FabricError,
    InvalidRequest,
    NoEligibleDeployment,
    ProviderAuth,
    ProviderError,
    QuotaExhausted,
    RateLimited,
    StreamBroken,
    Unavailable,
)
from workers.retries import MAX_FAILURES, MAX_WAITS, Disposition, dispose


@pytest.mark.parametrize("error", [InvalidRequest, EngineRejected, NoEligibleDeployment, Cancelled])
def test_what_the_caller_or_a_policy_has_caused_ends_at_once(error: type[FabricError]) -> None:
    assert dispose(error("no").info, 1) == Disposition("fail")


@pytest.mark.parametrize("error", [ContextOverflow, EngineUnsupported, ContentRefused, ProviderAuth, QuotaExhausted])
def test_what_another_place_may_see_otherwise_leaves_at_once(error: type[FabricError]) -> None:
    assert dispose(error("no").info, 1) == Disposition("leave")


@pytest.mark.parametrize("error", [EngineError, EngineUnavailable, ProviderError])
def test_what_may_pass_is_tried_again(error: type[FabricError]) -> None:
    assert [dispose(error("no").info, n).action for n in (1, 2, 3, 4)] == ["retry", "retry", "leave", "leave"]


def test_what_no_other_place_would_do_better_is_parked_in_the_end() -> None:
    assert [dispose(Unavailable("no").info, n).action for n in (1, 3)] == ["retry", "park"]


@pytest.mark.parametrize("error", [StreamBroken, ConfigError, DeadlineExceeded])
def test_what_cannot_pass_ends(error: type[FabricError]) -> None:
    assert dispose(error("no").info, 1) == Disposition("fail")


def test_a_place_that_takes_no_more_is_waited_for_however_often() -> None:
    assert dispose(RateLimited("later", retry_after_s=2).info, 99) == Disposition("wait", 2_000)
    assert dispose(RateLimited("later").info, 1, attempt=50).delay_ms <= 10_000
    assert dispose(RateLimited("later").info, 1, attempt=MAX_WAITS, left_s=3_600).action == "wait"


def test_but_not_for_ever_where_there_is_no_deadline() -> None:
    limited, away = RateLimited("later", retry_after_s=2).info, EngineAway("loading").info
    assert dispose(limited, 1, attempt=MAX_WAITS - 1).action == "wait"
    assert dispose(limited, 1, attempt=MAX_WAITS).action == "leave"
    assert dispose(away, 1, attempt=MAX_WAITS).action == "wait", "it will be there again"


@pytest.mark.parametrize(("error", "action"), [(RateLimited, "wait"), (ProviderError, "retry")])
def test_but_not_beyond_the_deadline(error: type[FabricError], action: str) -> None:
    later = error("later", retry_after_s=5).info
    assert dispose(later, 1, left_s=6).action == action
    assert dispose(later, 1, left_s=4).action == "leave"


def test_the_providers_own_delay_wins() -> None:
    assert dispose(ProviderError("slow down", retry_after_s=2.5).info, 1) == Disposition("retry", 2_500)


@pytest.mark.parametrize(("asked_s", "waited_ms"), [(-1, 0), (86_400, 300_000)])
def test_within_reason(asked_s: float, waited_ms: int) -> None:
    assert dispose(ProviderError("slow down", retry_after_s=asked_s).info, 1) == Disposition("retry", waited_ms)


@given(st.integers(1, MAX_FAILURES - 1), st.integers())
def test_the_delay_grows_and_is_spread_out(failures: int, seed: int) -> None:
    delay = dispose(EngineError("no").info, failures, random_=random.Random(seed)).delay_ms
    assert 0 <= delay <= 200 * 2 ** (failures - 1)
