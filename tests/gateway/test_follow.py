"""``Follow``: a job's events as one reader gets them."""

from __future__ import annotations

import asyncio

import pytest

from fabric.gateway.follow import Event, Follow


def event(number: int, kind: str = "token") -> Event:
    return Event(number, b'{"type":"%b"}' % kind.encode())


def log(follow: Follow, *kinds: str) -> None:
    for number, kind in enumerate(kinds, follow.last + 1):
        follow.push(event(number, kind))


async def numbers(follow: Follow) -> list[int]:
    return [event.number for event in await follow.read()]


async def test_all_that_came_is_read_at_once_and_once() -> None:
    follow = Follow("job", "default")
    log(follow, "queued", "running", "token")
    assert await numbers(follow) == [1, 2, 3]
    reading = asyncio.create_task(numbers(follow))
    await asyncio.sleep(0)
    assert not reading.done()
    log(follow, "token", "token")
    assert await reading == [4, 5]


async def test_who_waits_for_the_end_hears_nothing_else() -> None:
    follow = Follow("job", "default", final_only=True)
    reading = asyncio.create_task(numbers(follow))
    await asyncio.sleep(0)
    log(follow, "running", "token")
    await asyncio.sleep(0)
    assert not reading.done()
    log(follow, "failed")
    assert await reading == [3]


async def test_a_failure_comes_after_what_was_there() -> None:
    follow = Follow("job", "default")
    log(follow, "token")
    follow.fail(ValueError())
    assert await numbers(follow) == [1]
    with pytest.raises(ValueError):
        await follow.read()


async def test_a_nudge_wakes_with_nothing() -> None:
    follow = Follow("job", "default")
    reading = asyncio.create_task(follow.read())
    await asyncio.sleep(0)
    follow.nudge()
    assert await reading == []


@pytest.mark.parametrize(
    ("kinds", "ended", "left"),
    [
        (("queued", "token", "succeeded"), True, [1, 2, 3]),
        (("queued", "token"), False, [1, 2]),
        (("queued", "dead", "queued", "succeeded"), True, [3, 4]),
        (("queued", "dead", "queued", "dead", "queued", "running"), False, [5, 6]),
        (("queued", "dead", "queued", "dead"), True, [3, 4]),
    ],
)
async def test_only_the_last_run_of_a_replayed_job_counts(kinds: tuple[str, ...], ended: bool, left: list[int]) -> None:
    follow = Follow("job", "default")
    log(follow, *kinds)
    follow.only_last_run(ended=ended)
    assert await numbers(follow) == left


@pytest.mark.parametrize("kind", ["succeeded", "failed", "cancelled", "expired", "dead"])
def test_ends(kind: str) -> None:
    assert event(1, kind).final
    assert not event(1, kind).token


@pytest.mark.parametrize("kind", ["queued", "dispatched", "running", "requeued", "token"])
def test_other_events(kind: str) -> None:
    assert not event(1, kind).final
    assert event(1, kind).token == (kind == "token")
