"""A provider's rate limit: read from whatever it sends, obeyed by all requests of the worker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fabric.contracts.catalog import Deployment
from fabric.contracts.errors import FabricError, RateLimited
from workers.engines.limit_headers import Window, retry_after_s, windows
from workers.engines.openai import OpenAIEngine
from workers.engines.provider_limits import LocalBoard, RateGate, Spent

#: Examples may take long on a busy machine.
PATIENT = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
BODY = {"messages": [{"role": "user", "content": "Hi"}]}
ANSWER = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}]}
NOW = 1_800_000_000.0


async def well(received: Any, wire: Any) -> None:
    await wire.json(ANSWER)


def refuse(status: int = 429, **headers: str) -> Any:
    async def play(received: Any, wire: Any) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        await wire.json({"error": {"message": "slow down"}}, status, named)

    return play


@pytest.fixture
async def provider(start_provider: Callable[..., Awaitable[Any]]) -> Any:
    return await start_provider(well)


@pytest.fixture
async def make_engine(provider: Any) -> AsyncIterator[Callable[..., Any]]:
    made = []

    def make(board: Any = None, **options: Any) -> OpenAIEngine:
        values = {"engine": "openai", "tier": "cloud", "name": "big", "model": "m", "base_url": provider.url}
        engine = OpenAIEngine(Deployment(**values, options={"auth": "none", **options}), board)
        made.append(engine)
        return engine

    yield make
    for engine in made:
        await engine.close()


# What providers send.


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"x-ratelimit-remaining-requests": "59", "x-ratelimit-reset-requests": "1s"}, [Window(59, 1.0, True)]),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "6m0s"}, [Window(0, 360.0, False)]),
        ({"x-ratelimit-remaining-requests": "1", "x-ratelimit-reset-requests": "2m59.56s"}, [Window(1, 179.56, True)]),
        ({"x-ratelimit-remaining-requests": "1", "x-ratelimit-reset-requests": "20ms"}, [Window(1, 0.02, True)]),
        ({"x-ratelimit-remaining-requests": "1", "x-ratelimit-reset-requests": "1h2m3s"}, [Window(1, 3723.0, True)]),
        ({"x-ratelimit-remaining": "3", "x-ratelimit-reset": "1800000012000"}, [Window(3, 12.0, True)]),  # OpenRouter
        ({"x-ratelimit-remaining": "3", "x-ratelimit-reset": "1800000012"}, [Window(3, 12.0, True)]),
        ({"x-ratelimit-remaining": "3", "x-ratelimit-reset": "30"}, [Window(3, 30.0, True)]),
        (
            {
                "anthropic-ratelimit-requests-remaining": "4",
                "anthropic-ratelimit-requests-reset": "2027-01-15T08:00:10Z",
            },
            [Window(4, 10.0, True)],
        ),
        (
            {"x-ratelimit-remaining-requests": "1", "x-ratelimit-reset-requests": "1999-01-01T00:00:00Z"},
            [Window(1, 0.0, True)],
        ),
        ({"x-ratelimit-remaining-requests": "1"}, []),
        ({"x-ratelimit-remaining-requests": "some", "x-ratelimit-reset-requests": "1s"}, []),
        ({"x-ratelimit-remaining-requests": "1", "x-ratelimit-reset-requests": "soon"}, []),
        ({"x-ratelimit-remaining-requests": "1", "x-ratelimit-reset-requests": ""}, []),
    ],
)
def test_windows(headers: dict[str, str], expected: list[Window]) -> None:
    found = windows(headers, NOW)
    assert [(w.remaining, round(w.reset_s, 3), w.requests) for w in found] == [
        (w.remaining, w.reset_s, w.requests) for w in expected
    ]


@PATIENT
@given(st.text(max_size=40), st.text(max_size=40), st.text(max_size=40))
def test_headers_full_of_nonsense_are_left_out(remaining: str, reset: str, after: str) -> None:
    names = ("x-ratelimit-remaining-requests", "x-ratelimit-reset-requests")
    for window in windows(dict(zip(names, (remaining, reset), strict=True)), NOW):
        assert window.remaining >= 0
        assert 0 <= window.reset_s <= 86_400
    seconds = retry_after_s({"retry-after": after, "date": reset}, NOW)
    assert seconds is None or 0 <= seconds <= 86_400


# The gate.


async def test_one_refusal_holds_all_requests_back(provider: Any, make_engine: Any, run: Any) -> None:
    engine = make_engine()
    provider.plays = [refuse(retry_after="0.5")]
    with pytest.raises(RateLimited):
        await run(engine)(BODY)
    refused_at = time.monotonic()
    await asyncio.gather(*(run(engine)(BODY) for _ in range(10)))

    assert time.monotonic() - refused_at > 0.4
    assert len(provider.received) == 11


async def test_after_a_pause_one_request_goes_ahead(provider: Any, make_engine: Any, run: Any) -> None:
    engine = make_engine()
    let_in = asyncio.Event()

    async def slow(received: Any, wire: Any) -> None:
        assert len(provider.received) == 2  # one refused, one ahead
        let_in.set()
        await well(received, wire)

    provider.plays = [refuse(retry_after="0.1"), slow]
    with pytest.raises(RateLimited):
        await run(engine)(BODY)
    await asyncio.gather(*(run(engine)(BODY) for _ in range(10)))
    assert let_in.is_set()
    assert len(provider.received) == 11


async def test_many_refusals_at_once_count_as_one() -> None:
    gate = RateGate()
    rounds = [await gate.enter(0) for _ in range(100)]
    for round_ in rounds:
        gate.refused(round_, {})
    assert 0 < gate.paused_s <= 1.0


async def test_refusals_in_a_row_make_longer_pauses() -> None:
    clock = Clock()
    gate = RateGate(clock=clock)
    pauses = []
    for _ in range(7):
        gate.refused(await gate.enter(0), {})
        pauses.append(gate.paused_s)
        clock.now += gate.paused_s
    assert pauses == [1, 2, 4, 8, 16, 30, 30]


async def test_while_nobody_is_let_in_ever_more_try() -> None:
    clock = Clock()
    gate = RateGate(clock=clock)
    gate.refused(await gate.enter(0), {"retry-after": "5"})
    passed = []
    for _ in range(8):
        clock.now += 1
        count = 0
        while await passes(gate):
            count += 1
        passed.append(count)
    assert passed == [0, 0, 0, 0, 1, 2, 4, 8]


async def test_late_answers_to_older_requests_prove_nothing() -> None:
    clock = Clock()
    gate = RateGate(clock=clock)
    older, refused = await gate.enter(0), await gate.enter(0)
    gate.refused(refused, {"retry-after": "5"})
    gate.answered(older, {})
    clock.now += 5
    ahead = await gate.enter(0)
    assert not await passes(gate)
    gate.answered(ahead, {})
    assert await passes(gate)
    assert await passes(gate)


async def test_what_is_left_is_counted_down() -> None:
    clock = Clock()
    gate = RateGate(clock=clock)
    left = {"x-ratelimit-remaining-requests": "3", "x-ratelimit-reset-requests": "10s"}
    gate.answered(await gate.enter(0), left)
    assert [await passes(gate) for _ in range(5)] == [True, True, True, False, False]
    assert gate.paused_s == 10
    clock.now += 10
    assert gate.paused_s == 0
    assert await passes(gate)


async def test_spent_tokens_stop_requests_too() -> None:
    gate = RateGate(clock=Clock())
    headers = {
        "x-ratelimit-remaining-requests": "100",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "20s",
    }
    gate.answered(await gate.enter(0), headers)
    with pytest.raises(Spent) as caught:
        await gate.enter(5)
    assert caught.value.wait_s == 20


async def test_tokens_that_are_left_are_not_counted_as_requests() -> None:
    gate = RateGate(clock=Clock())
    gate.answered(await gate.enter(0), {"x-ratelimit-remaining-tokens": "1", "x-ratelimit-reset-tokens": "20s"})
    assert await passes(gate)
    assert await passes(gate)


async def test_workers_share_their_pauses_by_a_board() -> None:
    board = LocalBoard()
    one, other = RateGate(board), RateGate(board)
    one.refused(await one.enter(0), {"retry-after": "60"})
    assert 59 < other.paused_s <= 60
    with pytest.raises(Spent):
        await other.enter(1)


# The engine at the gate.


async def test_a_request_waits_no_longer_than_it_may(provider: Any, make_engine: Any, run: Any) -> None:
    engine = make_engine(limit_wait_s=0.1)
    provider.plays = [refuse(retry_after="60")]
    with pytest.raises(RateLimited):
        await run(engine)(BODY)
    with pytest.raises(RateLimited, match="takes no more requests for the next") as caught:
        await run(engine)(BODY)
    assert caught.value.retry_after_s is not None
    assert 55 < caught.value.retry_after_s <= 60
    assert len(provider.received) == 1


async def test_a_spent_limit_takes_the_slots_away(provider: Any, make_engine: Any, run: Any) -> None:
    engine = make_engine()
    assert engine.slots == 512
    provider.plays = [refuse(retry_after="60")]
    with pytest.raises(RateLimited):
        await run(engine)(BODY)
    assert engine.slots == 0


@pytest.mark.parametrize("status", [503, 529])
async def test_retry_after_holds_for_all_whatever_the_status(
    provider: Any, make_engine: Any, run: Any, status: int
) -> None:
    engine = make_engine()
    provider.plays = [refuse(status, retry_after="60")]
    with pytest.raises(FabricError):
        await run(engine)(BODY)
    assert engine.slots == 0


async def test_other_failures_pause_nobody(provider: Any, make_engine: Any, run: Any) -> None:
    engine = make_engine()
    provider.plays = [refuse(500), refuse(503), refuse(400, retry_after="60")]
    for _ in range(3):
        with pytest.raises(FabricError):
            await run(engine)(BODY)
    assert engine.slots == 512
    await run(engine)(BODY)


async def test_waiting_at_the_gate_can_be_cancelled(provider: Any, make_engine: Any, run: Any) -> None:
    engine = make_engine(limit_wait_s=3600)
    provider.plays = [refuse(retry_after="60")]
    with pytest.raises(RateLimited):
        await run(engine)(BODY)
    task = asyncio.create_task(run(engine)(BODY))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(provider.received) == 1


class Clock:
    """Time that goes on when it is told to."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


async def passes(gate: RateGate) -> bool:
    try:
        await gate.enter(0)
    except Spent:
        return False
    return True
