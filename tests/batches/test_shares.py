"""Who may have how many lines in the store."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fabric.batches.shares import Load, evenly, shares

wants = st.dictionaries(st.integers(0, 50), st.integers(0, 10_000), max_size=40)


@given(wants, st.integers(0, 5_000))
def test_evenly_is_fair(wanted: dict[int, int], total: int) -> None:
    granted = evenly(wanted, total)
    assert granted.keys() == wanted.keys()
    assert all(granted[key] <= want for key, want in wanted.items())
    assert sum(granted.values()) <= max(total, len(wanted))
    # Nobody who wants more has less than somebody else, but for what can't be divided.
    short = [granted[key] for key, want in wanted.items() if granted[key] < want]
    assert not short or min(short) >= max(granted.values()) - 1
    # What nobody needs stays, nothing else does.
    assert not short or sum(granted.values()) >= total


@given(wants)
def test_everyone_gets_something(wanted: dict[int, int]) -> None:
    assert all(granted >= min(1, wanted[key]) for key, granted in evenly(wanted, 3).items())


def test_tenants_come_before_batches() -> None:
    loads = [Load(f"a{n}", "a", 0, 1_000) for n in range(3)] + [Load("b", "b", 0, 1_000)]
    assert shares(loads, 600) == {"a0": 100, "a1": 100, "a2": 100, "b": 300}


def test_what_one_doesnt_need_the_others_get() -> None:
    loads = [Load("small", "a", 5, 5), Load("large", "b", 100, 10_000)]
    assert shares(loads, 1_000) == {"small": 10, "large": 990}


def test_one_alone_has_the_window() -> None:
    assert shares([Load("a", "a", 0, 10_000)], 4_000) == {"a": 4_000}
    assert shares([], 4_000) == {}
