"""Breakers and retry budgets: the rules in Lua and in Python are one, and the scripts keep them."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fabric.contracts.breaker import Breaker, End, Health, after, dump, end_of, put_off
from fabric.contracts.errors import EngineError, RateLimited
from fabric.contracts.job import JobState
from fabric.store import Store, transitions
from fabric.store.command import with_parts
from fabric.store.transitions import FULL, Dispatch, Failure, Outcome

if TYPE_CHECKING:
    from tests.store.conftest import Jobs

ENDS: tuple[End, ...] = ("good", "slow", "bad", "neutral")
#: Opens at the third failure in a row, for good; for at once: its probe may go at once.
FOR_GOOD, AT_ONCE = Breaker(failures=3, open_s=3_600, open_max_s=3_600), Breaker(failures=3, open_s=0.001)

STEP = """-- needs: health
local h, rules = cjson.decode(ARGV[1]), cjson.decode(ARGV[2])
for name, value in pairs(fresh()) do if h[name] == nil then h[name] = value end end
if ARGV[3] == 'retry' then return { put_off(h, rules, tonumber(ARGV[4])), cjson.encode(h) } end
return { 0, cjson.encode(after(h, rules, ARGV[3], tonumber(ARGV[4]), ARGV[5] == '1')) }
"""

rules = st.builds(
    Breaker,
    failures=st.integers(1, 6),
    error_rate=st.sampled_from((0.3, 0.5, 1.0)),
    minimum=st.integers(1, 8),
    window_s=st.sampled_from((0.5, 30.0)),
    slow_rate=st.sampled_from((0.5, 1.0)),
    open_s=st.sampled_from((0.5, 10.0)),
    open_max_s=st.sampled_from((10.0, 15.0)),
    retries_per_s=st.sampled_from((0.5, 10.0)),
    retry_burst=st.integers(0, 5),
)
#: What happens, how many ms later, and whether it is the probe's end.
steps = st.lists(st.tuples(st.sampled_from((*ENDS, "retry")), st.integers(0, 40_000), st.booleans()), max_size=40)


@pytest.fixture
def lua(store: Store) -> Any:
    script = store.redis.register_script(with_parts(STEP))

    def step(health: Health, rules: Breaker, what: str, now_ms: int, probe: bool) -> tuple[Health, int]:
        values = {name: getattr(health, name) for name in Health.__slots__}
        wait_ms, dumped = script(args=[orjson.dumps(values), rules.model_dump_json(), what, now_ms, int(probe)])
        return Health.load(orjson.loads(dumped)), wait_ms

    return step


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # a script: it keeps nothing
@given(rules=rules, steps=steps)
def test_both_languages_say_the_same(lua: Any, rules: Breaker, steps: list[tuple[Any, int, bool]]) -> None:
    health, now_ms = Health(), 1_764_000_000_000
    for what, later_ms, probe in steps:
        now_ms += later_ms
        expected, wait_ms = put_off(health, rules, now_ms) if what == "retry" else (health, 0)
        if what != "retry":
            expected = after(health, rules, what, now_ms, probe=probe)
        health, waited_ms = lua(health, rules, what, now_ms, probe)
        assert waited_ms == wait_ms
        for name in Health.__slots__:
            found, wanted = getattr(health, name), getattr(expected, name)
            assert found == (wanted if isinstance(wanted, str) else pytest.approx(wanted, rel=1e-9, abs=1e-9)), name


@given(rules=rules, steps=steps)
def test_laws(rules: Breaker, steps: list[tuple[Any, int, bool]]) -> None:
    health, now_ms = Health(), 1_764_000_000_000
    for what, later_ms, probe in steps:
        now_ms += later_ms
        before = health
        if what == "retry":
            health, wait_ms = put_off(health, rules, now_ms)
            assert wait_ms <= 30_000
            continue
        health = after(health, rules, what, now_ms, probe=probe)
        if what == "neutral" or (before.open_until and not probe):
            assert health == before
        if what == "good" and probe and before.open_until:
            assert health.open_until == health.trips == 0
        if health.open_until > before.open_until:
            assert what in ("bad", "slow")
            assert 0 < health.open_until - now_ms <= 1000 * rules.open_max_s
        assert health.bad <= health.n + 1e-9
        assert health.slow <= health.n + 1e-9


def test_it_stays_open_longer_each_time_up_to_a_limit() -> None:
    rules = Breaker(failures=1, open_s=10, open_max_s=35)
    health, opened = Health(), []
    for _ in range(4):
        health = after(health, rules, "bad", 1_000, probe=True)
        opened.append(health.open_until - 1_000)
    assert opened == [10_000, 20_000, 35_000, 35_000]
    assert after(health, rules, "good", 1_000, probe=True) == Health()


def test_a_place_that_is_well_has_no_record() -> None:
    health = after(Health(), Breaker(), "good", 1_000, probe=False)
    assert health.well
    once = after(health, Breaker(), "bad", 1_000, probe=False)
    assert not once.well
    assert after(once, Breaker(), "good", 1_000 + 3_600_000, probe=False).well


def test_a_long_answer_is_not_a_slow_one() -> None:
    rules = Breaker(slow_s=10)
    assert [end_of(s, tokens, rules) for s, tokens in ((9, 0), (11, 0), (100, 95), (100, 20))] == [
        *("good", "slow"),
        *("good", "slow"),
    ]


def test_retries_beyond_the_burst_are_put_off_one_after_the_other() -> None:
    rules, health, waits = Breaker(retry_burst=2, retries_per_s=10), Health(), []
    for _ in range(5):
        health, wait_ms = put_off(health, rules, 1_000)
        waits.append(wait_ms)
    assert waits == [0, 0, 100, 200, 300]
    assert put_off(replace(health), rules, 11_000)[1] == 0


class TestInTheStore:
    def fails(self, jobs: Jobs, count: int, rules: Breaker = FOR_GOOD, error: Any = None) -> list[str]:
        failed = [jobs.running() for _ in range(count)]
        told = (error or EngineError("no")).info
        for job in failed:
            command = transitions.fail([Failure(job, jobs.attempts[job], 0, told)], breakers=dump([("*", rules)]))
            assert jobs.store(command) == ["queued"]
        return failed

    def breakers(self, store: Store) -> dict[str, str]:
        found = store(transitions.room()).breakers
        return {name: "probing" if b.probing else b.state for name, b in found.items()}

    def test_failures_open_it_and_nobody_is_sent_there(self, jobs: Jobs, store: Store) -> None:
        self.fails(jobs, 2)
        assert self.breakers(store) == {}
        self.fails(jobs, 1)
        assert self.breakers(store) == {"small-cpu": "open"}
        found = store(transitions.room()).breakers["small-cpu"]
        assert (found.shut, found.why) == (True, "failures")
        assert found.until_ms > time.time() * 1000 + 3_000_000
        job = jobs.taken()
        assert jobs.send(job) == FULL
        assert jobs.send(job, "small-gpu") == 1

    def test_one_request_that_always_fails_does_not_open_it(self, jobs: Jobs, store: Store) -> None:
        self.fails(jobs, 1)
        for failures in (1, 2):
            job = jobs.running()
            failure = Failure(job, jobs.attempts[job], 0, EngineError("no").info, "leave", failures=failures)
            store(transitions.fail([failure], breakers=dump([("*", FOR_GOOD)])))
        assert self.breakers(store) == {}
        self.fails(jobs, 2)
        assert self.breakers(store) == {"small-cpu": "open"}

    def test_half_open_it_lets_one_through(self, jobs: Jobs, store: Store) -> None:
        self.fails(jobs, 3, AT_ONCE)
        while self.breakers(store) != {"small-cpu": "half_open"}:
            pass
        one, two = jobs.taken(), jobs.taken()
        sent = [Dispatch(job, "small-cpu", "cpu", b"{}") for job in (one, two)]
        assert store(transitions.dispatch(sent)) == [1, FULL]
        assert self.breakers(store) == {"small-cpu": "probing"}
        assert jobs.send(two) == FULL

    @pytest.mark.parametrize(("end", "state"), [("good", {}), ("bad", {"small-cpu": "open"}), ("neutral", None)])
    def test_the_probes_end_decides(self, jobs: Jobs, store: Store, end: End, state: dict[str, str] | None) -> None:
        self.fails(jobs, 3, AT_ONCE)
        while self.breakers(store) != {"small-cpu": "half_open"}:
            pass
        probe = jobs.running()
        outcome = Outcome(probe, jobs.attempts[probe], JobState.SUCCEEDED, end=end)
        assert store(transitions.commit([outcome], breakers=dump([("*", FOR_GOOD)]))) == [1]
        assert self.breakers(store) == ({"small-cpu": "half_open"} if state is None else state)

    def test_what_was_under_way_before_decides_nothing(self, jobs: Jobs, store: Store) -> None:
        earlier = jobs.running()
        self.fails(jobs, 3)
        outcome = Outcome(earlier, 1, JobState.SUCCEEDED, end="good")
        assert store(transitions.commit([outcome])) == [1]
        assert self.breakers(store) == {"small-cpu": "open"}

    def test_a_probe_that_comes_back_without_an_end_makes_room_for_another(self, jobs: Jobs, store: Store) -> None:
        self.fails(jobs, 3, AT_ONCE)
        while self.breakers(store) != {"small-cpu": "half_open"}:
            pass
        jobs.running(worker="w9")
        assert self.breakers(store) == {"small-cpu": "probing"}
        jobs.rescue()
        assert self.breakers(store) == {"small-cpu": "half_open"}

    def test_being_asked_to_wait_is_no_failure(self, jobs: Jobs, store: Store) -> None:
        for job in [jobs.running() for _ in range(10)]:
            assert jobs.fail(job, error=RateLimited("later").info, action="wait") == "queued"
            assert store.redis.hget(f"fabric:job:{job}", "failures") is None
        assert store.redis.exists("fabric:health") == 0

    def test_good_ends_of_a_place_that_is_well_write_nothing(self, jobs: Jobs, store: Store) -> None:
        job = jobs.running()
        store(transitions.commit([Outcome(job, 1, JobState.SUCCEEDED, end="good")]))
        assert store.redis.exists("fabric:health") == 0

    def test_retries_that_would_be_too_many_wait_longer(self, jobs: Jobs, store: Store) -> None:
        rules = Breaker(failures=99, minimum=99, retry_burst=1, retries_per_s=0.1)
        first, second = self.fails(jobs, 2, rules)
        assert store.redis.zscore("fabric:delayed", first) is None
        assert store.redis.zscore("fabric:delayed", second) > time.time() * 1000 + 5_000
