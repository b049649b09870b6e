"""The plan is a value that the seed alone makes."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from storm import plan

SEEDS = st.integers(0, 2**31)
TRANSPORTS = st.sampled_from(["valkey", "rabbitmq"])


@given(SEEDS, TRANSPORTS, st.floats(1, 3600))
def test_a_seed_makes_one_plan(seed: int, transport: plan.Transport, seconds: float) -> None:
    faults = plan.make(seed, seconds, transport)
    assert faults == plan.make(seed, seconds, transport)
    assert all(fault.at_s + fault.for_s <= seconds for fault in faults)
    assert [fault.at_s for fault in faults] == sorted(fault.at_s for fault in faults)
    for fault in faults:
        kind = plan.KINDS[fault.kind]
        assert transport in kind.transports
        assert fault.target in kind.targets
        assert kind.seconds[0] <= fault.for_s <= kind.seconds[1]


def test_another_seed_makes_another() -> None:
    assert plan.make(1, 600, "valkey") != plan.make(2, 600, "valkey")


@given(SEEDS, TRANSPORTS)
def test_a_long_run_has_every_kind_alone_and_then_some_together(seed: int, transport: plan.Transport) -> None:
    faults = plan.make(seed, 900, transport)
    alone = [fault for fault in faults if fault.alone]
    assert {fault.kind for fault in alone} == {
        name for name, kind in plan.KINDS.items() if transport in kind.transports
    }
    for before, after in zip(alone, faults[1:], strict=False):
        assert after.at_s >= before.at_s + before.for_s + 8
    killed = {fault.target for fault in alone if fault.kind in ("kill-worker", "kill-process")}
    assert killed == set(plan.KILLED), "every process, once"
    later = faults[len(alone) :]
    assert any(b.at_s < a.at_s + a.for_s for a, b in pairwise(later))


@given(SEEDS, TRANSPORTS)
def test_what_can_be_hit_is_hit_in_turns(seed: int, transport: plan.Transport) -> None:
    hits: dict[str, list[str]] = {}
    for fault in plan.make(seed, 3600, transport):
        hits.setdefault(fault.kind, []).append(fault.target)
    for kind, targets in hits.items():
        counted = Counter(dict.fromkeys(plan.KINDS[kind].targets, 0))
        counted.update(targets)
        assert max(counted.values()) - min(counted.values()) <= 1, kind


def test_kinds_can_be_chosen_and_left_out() -> None:
    assert {fault.kind for fault in plan.make(1, 60, "valkey", only=["kill-worker"])} == {"kill-worker"}
    assert "clock-jump" not in {fault.kind for fault in plan.make(1, 900, "valkey", without=["clock-jump"])}
    assert plan.make(1, 60, "valkey", only=["kill-broker"]) == ()


def test_counts() -> None:
    faults = plan.make(4, 900, "rabbitmq")
    assert plan.counts(faults) == Counter(fault.kind for fault in faults)


@pytest.mark.parametrize("fault", plan.make(4, 120, "valkey")[:3])
def test_a_fault_can_be_read(fault: plan.Fault) -> None:
    assert f"{fault.kind} of {fault.target}" in str(fault)
