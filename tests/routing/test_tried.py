"""What earlier attempts and open breakers take from a job's choices."""

from __future__ import annotations

from typing import Any

import pytest

from fabric.contracts.breaker import OpenBreaker
from fabric.contracts.catalog import Catalog
from fabric.contracts.decision import Decision
from fabric.contracts.errors import ProviderError
from fabric.contracts.failures import NEW, Chain
from fabric.contracts.job import JobSpec
from fabric.contracts.policy import Policy
from fabric.routing import DeploymentState, World, decide, end_of_chain, policy_hash, waits_for

PRICE = {"input_per_million": 0.0, "output_per_million": 100.0}
CATALOG = Catalog.model_validate(
    {
        "models": [
            {
                "name": "m",
                "deployments": [
                    {"name": "small", "engine": "mock", "tier": "cpu", "context_window": 1_000},
                    {"name": "same", "engine": "mock", "tier": "gpu", "context_window": 1_000},
                    {"name": "large", "engine": "mock", "tier": "cloud", "context_window": 9_000, "price": PRICE},
                ],
            }
        ]
    }
)
NO_WORLD = World()
OPEN, HALF, PROBING = (
    OpenBreaker(False, False, 1_764_000_000_000, "failures"),
    OpenBreaker(True, False, 0, "failures"),
    OpenBreaker(True, True, 0, "failures"),
)


def decided(chain: Chain = NEW, catalog: Catalog = CATALOG, world: World = NO_WORLD, **fields: Any) -> Decision:
    values = {"id": "job_1", "endpoint": "/v1/chat/completions", "model": "m", "max_output_tokens": 100} | fields
    return decide(JobSpec(**values), catalog, policy_hash(catalog), world, chain)


def outs(decision: Decision) -> dict[str, str]:
    return {out.deployment: out.reason for out in decision.eliminated}


def plan(decision: Decision) -> list[str]:
    return [candidate.deployment for candidate in decision.plan]


class TestWhatWasTried:
    def test_is_out(self) -> None:
        decision = decided(Chain((("small", "engine_error"),)))
        assert plan(decision) == ["same", "large"]
        assert outs(decision) == {"small": "exhausted"}
        assert "engine_error" in decision.eliminated[0].detail

    def test_says_so_before_all_else(self) -> None:
        decision = decided(Chain((("large", "provider_error"),)), privacy="restricted")
        assert outs(decision) == {"large": "exhausted"}

    def test_the_label_still_holds_at_every_hop(self) -> None:
        decision = decided(Chain((("small", "engine_error"), ("same", "engine_error"))), privacy="restricted")
        assert decision.plan == ()
        assert outs(decision) == {"small": "exhausted", "same": "exhausted", "large": "privacy"}

    def test_an_overflow_leads_to_larger_windows_only(self) -> None:
        decision = decided(Chain((("small", "context_length_exceeded"),)))
        assert plan(decision) == ["large"]
        assert outs(decision) == {"small": "exhausted", "same": "context"}

    @pytest.mark.parametrize(("permitted", "expected"), [(False, []), (True, ["same", "large"])])
    def test_a_refusal_goes_elsewhere_only_if_the_policy_says_so(self, permitted: bool, expected: list[str]) -> None:
        policies = {"mine": Policy(kind="local-first", fall_back_on_refusal=permitted)}
        catalog = CATALOG.model_copy(update={"policies": policies, "default_policy": "mine"})
        catalog = Catalog.model_validate(catalog.model_dump())
        decision = decided(Chain((("small", "content_refused"),)), catalog)
        assert plan(decision) == expected
        if not permitted:
            assert outs(decision) == {"small": "exhausted", "same": "rule", "large": "rule"}

    def test_a_place_that_is_gone_from_the_catalogue_does_no_harm(self) -> None:
        assert plan(decided(Chain((("gone", "context_length_exceeded"),)))) == ["small", "same", "large"]


class TestMoneyThatIsSpent:
    def test_counts_against_the_cap(self) -> None:
        assert "large" in plan(decided(Chain(spent_usd=0.009), max_cost_usd=0.02))
        decision = decided(Chain(spent_usd=0.011), max_cost_usd=0.02)
        assert outs(decision) == {"large": "budget"}

    def test_all_of_it_spent_leaves_what_costs_nothing(self) -> None:
        assert plan(decided(Chain(spent_usd=5.0), max_cost_usd=0.02)) == ["small", "same"]


class TestBreakers:
    def world(self, **breakers: OpenBreaker) -> World:
        names = ("small", "same", "large")
        return World({name: DeploymentState(1, 4, 8, 0, breakers.get(name)) for name in names})

    def test_an_open_one_takes_its_place_out_and_says_until_when(self) -> None:
        decision = decided(world=self.world(small=OPEN))
        assert plan(decision) == ["same", "large"]
        assert outs(decision) == {"small": "health"}
        assert "open until 16:00:00 UTC (failures in a row)" in decision.eliminated[0].detail

    def test_a_half_open_one_lets_one_job_through(self) -> None:
        world = self.world(small=HALF)
        assert plan(decided(world=world))[0] == "small"
        assert world.of("small").free(interactive=True) == 1
        probing = self.world(small=PROBING)
        assert outs(decided(world=probing)) == {"small": "health"}
        assert probing.of("small").free(interactive=True) == 0

    def test_only_what_would_be_permitted_is_waited_for(self) -> None:
        decision = decided(world=self.world(small=OPEN, same=OPEN, large=OPEN), privacy="restricted")
        assert decision.plan == ()
        assert list(waits_for(decision)) == ["small", "same"]


def test_the_end_of_a_chain_is_the_last_error_with_what_is_out() -> None:
    last = ProviderError("It failed.", param="p").info
    ended = end_of_chain(decided(Chain((("small", "engine_error"),)), needs=("vision",)), last)
    assert (ended.status, ended.code, ended.fault, ended.param) == (502, "provider_error", "provider", "p")
    assert ended.message.startswith("It failed. No other place is left: small: exhausted")
    assert "same: capability (has no vision)" in ended.message
