"""What a key permits is a wall like any other: no policy, pin or fallback leads around it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.contracts.catalog import TIERS, Catalog, Tier
from fabric.contracts.job import JobSpec
from fabric.contracts.policy import POLICY_KINDS
from fabric.routing import decide, policy_hash, shape

PLACES = [
    {"name": "here", "engine": "mock", "tier": "cpu"},
    {"name": "gpu-eu", "engine": "mock", "tier": "gpu", "region": "eu"},
    {"name": "gpu-us", "engine": "mock", "tier": "gpu", "region": "us"},
    {"name": "cloud-eu", "engine": "openai", "tier": "cloud", "region": "eu"},
    {"name": "cloud-us", "engine": "openai", "tier": "cloud", "region": "us"},
    {"name": "cloud-somewhere", "engine": "openai", "tier": "cloud"},
]
CATALOG = Catalog.model_validate({"models": [{"name": "small", "deployments": PLACES}]})
HASH = policy_hash(CATALOG)
SPEC = JobSpec(id="job_1", endpoint="/v1/chat/completions", model="small", needs=("chat",))


def left(spec: JobSpec) -> set[str]:
    decision = decide(spec, CATALOG, HASH)
    out = {one.deployment: one.reason for one in decision.eliminated}
    assert set(out.values()) <= {"permission", "rule"}
    assert out.keys().isdisjoint(one.deployment for one in decision.plan)
    return {one.deployment for one in decision.plan}


def test_without_permissions_every_place_will_do() -> None:
    assert left(SPEC) == {str(place["name"]) for place in PLACES}


def test_tiers() -> None:
    assert left(replace(SPEC, allowed_tiers=("cpu",))) == {"here"}
    assert left(replace(SPEC, allowed_tiers=("cpu", "gpu"))) == {"here", "gpu-eu", "gpu-us"}


def test_regions_bind_hosted_apis_and_places_that_name_one() -> None:
    assert left(replace(SPEC, allowed_regions=("eu",))) == {"here", "gpu-eu", "cloud-eu"}
    assert left(replace(SPEC, allowed_regions=("mars",))) == {"here"}


def test_both_hold_together() -> None:
    assert left(replace(SPEC, allowed_tiers=("cloud",), allowed_regions=("us",))) == {"cloud-us"}
    assert left(replace(SPEC, allowed_tiers=("cloud",), allowed_regions=("mars",))) == set()


def test_a_pinned_job_gets_no_exception() -> None:
    assert left(replace(SPEC, deployment="cloud-us", allowed_tiers=("cpu",))) == set()


@pytest.mark.parametrize("change", [{"allowed_tiers": ("cpu",)}, {"allowed_regions": ("eu",)}])
def test_jobs_that_may_go_elsewhere_are_decided_apart(change: dict[str, tuple[str, ...]]) -> None:
    """Jobs of one shape share a decision: those of another key must not."""
    assert shape(SPEC) != shape(replace(SPEC, **change))  # type: ignore[arg-type]


@given(
    st.lists(st.sampled_from(TIERS), unique=True, min_size=1).map(tuple),
    st.lists(st.sampled_from(["eu", "us"]), unique=True).map(tuple),
    st.sampled_from(POLICY_KINDS),
)
def test_under_every_policy(tiers: tuple[Tier, ...], regions: tuple[str, ...], policy: str) -> None:
    for name in left(replace(SPEC, policy=policy, allowed_tiers=tiers, allowed_regions=regions)):
        place = CATALOG.by_deployment[name]
        assert place.tier in tiers
        assert not regions or place.region in regions or (place.tier != "cloud" and place.region == "local")
