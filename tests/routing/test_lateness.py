"""Deadlines that no place can meet: refused only on measurements, and with a time that proves right."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.contracts.catalog import Catalog
from fabric.contracts.errors import Busy, FabricError, InvalidRequest
from fabric.contracts.experience import AnswerLength, Experience, Pace
from fabric.contracts.job import JobSpec
from fabric.contracts.worker import WorkerInfo
from fabric.routing import DeploymentState, World, decide, policy_hash, too_near, world_of

CHAT = "/v1/chat/completions"
NOW_MS = 1_000_000_000
PLACES = [{"name": name, "engine": "mock", "tier": "cpu"} for name in ("slow", "quick")]
CATALOG = Catalog.model_validate({"models": [{"name": "m", "deployments": PLACES}]})


def world(slow_busy: int = 0, quick_busy: int = 0, samples: int = 50, slots: int = 2) -> World:
    """Answers take 10 s on the one, 1 s on the other."""
    paces = {
        (CHAT, name): Pace(
            samples, NOW_MS, seconds, base_s=0.0, per_prompt_token_s=0.0, per_output_token_s=seconds / 10
        )
        for name, seconds in (("slow", 10.0), ("quick", 1.0))
    }
    states = {
        "slow": DeploymentState(1, slots, 100, slow_busy),
        "quick": DeploymentState(1, slots, 100, quick_busy),
    }
    return World(states, Experience(paces, {(CHAT, "m"): AnswerLength(50, NOW_MS, 10.0)}), NOW_MS)


def asked(within_s: float, seen: World, **fields: Any) -> FabricError | None:
    spec = JobSpec(
        **{"id": "job_1", "endpoint": CHAT, "model": "m", "priority": "standard", **fields},
        deadline_ms=seen.now_ms + int(within_s * 1000),
    )
    return too_near(spec, decide(spec, CATALOG, policy_hash(CATALOG), seen), CATALOG, seen)


def test_one_that_can_be_met_is_let_in() -> None:
    assert asked(1.5, world()) is None


def test_one_that_nothing_could_meet_is_the_callers_mistake() -> None:
    error = asked(0.5, world(quick_busy=20))
    assert isinstance(error, InvalidRequest)
    assert (error.info.status, error.param, error.error_code) == (400, "fabric.deadline_s", "deadline_too_near")


def test_one_that_only_what_waits_stands_before_may_come_back() -> None:
    error = asked(3.0, world(slow_busy=20, quick_busy=11))
    assert isinstance(error, Busy)
    assert error.info.status == 429
    # Ten jobs and its own turn at two slots of a second each: done in 5 + 1 s, 3 s too late.
    assert error.retry_after_s == pytest.approx(3.0)
    assert "ready in about 6.0 s, on quick; the deadline is in 3.0 s" in error.message


def test_a_guess_refuses_nobody() -> None:
    assert asked(0.001, world(samples=1)) is None


def test_a_place_without_workers_may_come_back() -> None:
    seen = world(quick_busy=50, slow_busy=50)
    seen = replace(seen, deployments={"slow": seen.deployments["slow"]})
    assert asked(3.0, seen) is None


def test_another_reason_stays_the_reason() -> None:
    assert asked(0.5, world(), needs=("vision",)) is None


@given(st.floats(0.1, 60), st.integers(0, 80), st.integers(0, 80))
def test_who_comes_back_when_told_is_let_in(within_s: float, slow_busy: int, quick_busy: int) -> None:
    """If nobody else comes, each place has then done what its pace says."""
    seen = world(slow_busy, quick_busy)
    error = asked(within_s, seen)
    if not isinstance(error, Busy):
        return
    assert error.retry_after_s is not None
    later_s = error.retry_after_s + 0.001
    done = {
        "slow": slow_busy - 2 * later_s / 10.0,
        "quick": quick_busy - 2 * later_s / 1.0,
    }
    states = {name: replace(seen.of(name), busy=max(0, int(-(-left // 1)))) for name, left in done.items()}
    # Jobs that are part done count whole, so that the answer may be off by one job's turn at most.
    again = asked(within_s + 5.0, replace(seen, deployments=states))
    assert again is None


class TestTheEnginesContext:
    def info(self, name: str, worker: str = "w", **context: int) -> WorkerInfo:
        return WorkerInfo(worker, "cpu", "host", 1, 0, {name: 2}, {name: 4}, {}, context=context)

    def decided(self, *workers: WorkerInfo, **fields: Any) -> tuple[list[str], dict[str, str]]:
        seen = world_of(workers, {}, CATALOG, now_ms=NOW_MS)
        spec = JobSpec("job_1", CHAT, "m", **fields)
        decision = decide(spec, CATALOG, "", seen)
        return [p.deployment for p in decision.plan], {e.deployment: e.reason for e in decision.eliminated}

    def test_a_job_goes_nowhere_where_it_does_not_fit(self) -> None:
        workers = self.info("slow", slow=512), self.info("quick", worker="v", quick=2048)
        plan, out = self.decided(*workers, prompt_tokens=500, max_output_tokens=100)
        assert (plan, out) == (["quick"], {"slow": "context"})

    def test_the_smallest_of_the_workers_counts(self) -> None:
        workers = self.info("slow", slow=4096), self.info("slow", worker="v", slow=512)
        assert self.decided(*workers, prompt_tokens=600)[1] == {"slow": "context"}

    def test_one_that_does_not_say_is_taken_at_the_catalogues_word(self) -> None:
        assert self.decided(self.info("slow"), prompt_tokens=600)[0] == ["slow", "quick"]
