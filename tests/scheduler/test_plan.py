"""Decisions: what is out and why, what is left and in which order. The privacy label is a wall."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.contracts.catalog import PRIVACY_LABELS, TIERS, Catalog, Model
from fabric.contracts.decision import Decision
from fabric.contracts.job import JobSpec
from scheduler.constraints import worst_cost
from scheduler.plan import decide, policy_hash, refusal


def catalog(*deployments: dict[str, Any], **settings: Any) -> Catalog:
    """One model ``m`` on deployments ``a``, ``b``, …"""
    named = [{"name": chr(ord("a") + n), "engine": "mock", "tier": "cpu", **d} for n, d in enumerate(deployments)]
    return Catalog.model_validate({"models": [{"name": "m", "deployments": named}], **settings})


def spec(**fields: Any) -> JobSpec:
    return JobSpec(**({"id": "job_1", "endpoint": "/v1/chat/completions", "model": "m"} | fields))


def plan(decision: Decision) -> list[str]:
    return [candidate.deployment for candidate in decision.plan]


def out(decision: Decision) -> dict[str, str]:
    return {elimination.deployment: elimination.reason for elimination in decision.eliminated}


tiers, regions = st.sampled_from(TIERS), st.sampled_from(("local", "eu", "us"))
data_policies = st.sampled_from(("none", "no_training", "zero_retention"))
needs = st.sets(st.sampled_from(("chat", "tools", "vision", "embeddings"))).map(sorted)
catalogs = st.builds(
    lambda deployments, privacy: catalog(*deployments, privacy=privacy),
    st.lists(
        st.fixed_dictionaries(
            {
                "tier": tiers,
                "region": regions,
                "data_policy": data_policies,
                "capabilities": needs,
                "context_window": st.integers(16, 4096),
                "price": st.fixed_dictionaries({"input_per_million": st.floats(0, 100)}),
            }
        ),
        min_size=1,
        max_size=6,
    ),
    st.fixed_dictionaries(
        dict.fromkeys(
            PRIVACY_LABELS,
            st.fixed_dictionaries(
                {
                    "tiers": st.sets(tiers).map(sorted),
                    "regions": st.none() | st.sets(regions).map(sorted),
                    "data_policy": data_policies,
                    "redact": st.booleans(),
                }
            ),
        )
    ),
)
specs = st.builds(
    spec,
    privacy=st.sampled_from(PRIVACY_LABELS),
    needs=needs.map(tuple),
    prompt_tokens=st.integers(0, 5_000),
    max_output_tokens=st.none() | st.integers(1, 5_000),
    max_cost_usd=st.none() | st.floats(0, 1),
    policy=st.sampled_from((None, "local-first", "cheapest", "nonsense")),
    endpoint=st.sampled_from(("/v1/chat/completions", "/v1/embeddings")),
)


class TestTheWall:
    @given(specs, catalogs)
    def test_no_plan_leaves_what_the_label_permits(self, job: JobSpec, found: Catalog) -> None:
        rule = found.privacy.of(job.privacy)
        strength = ("none", "no_training", "zero_retention")
        for candidate in decide(job, found, "").plan:
            deployment = found.by_deployment[candidate.deployment]
            assert deployment.tier == candidate.tier
            assert deployment.tier in rule.tiers
            if deployment.tier == "cloud":
                assert not rule.redact
                assert rule.regions is None or deployment.region in rule.regions
                assert strength.index(deployment.data_policy) >= strength.index(rule.data_policy)

    @given(specs, catalogs)
    def test_nor_what_the_job_needs_fits_and_may_cost(self, job: JobSpec, found: Catalog) -> None:
        for candidate in decide(job, found, "").plan:
            deployment = found.by_deployment[candidate.deployment]
            assert set(job.needs) <= set(deployment.capabilities)
            assert job.prompt_tokens + (job.max_output_tokens or 0) <= deployment.context_window
            assert job.max_cost_usd is None or candidate.expected_cost_usd <= job.max_cost_usd

    def test_by_default_restricted_jobs_stay_on_the_operators_machines(self) -> None:
        cloud = {"tier": "cloud", "data_policy": "zero_retention", "region": "local", "quality": 1.0}
        decision = decide(spec(privacy="restricted"), catalog(cloud, {"tier": "gpu"}), "")
        assert (plan(decision), out(decision)) == (["b"], {"a": "privacy"})

    def test_and_nothing_is_better_than_the_wrong_place(self) -> None:
        decision = decide(spec(privacy="restricted"), catalog({"tier": "cloud"}), "")
        assert decision.chosen is None

    def test_confidential_jobs_wait_for_a_redactor(self) -> None:
        decision = decide(spec(privacy="confidential"), catalog({"tier": "cloud", "data_policy": "zero_retention"}), "")
        assert out(decision) == {"a": "privacy"}
        assert "redact" in decision.eliminated[0].detail


class TestADecision:
    @given(specs, catalogs, st.randoms())
    def test_accounts_for_every_candidate_once(self, job: JobSpec, found: Catalog, random: Any) -> None:
        decision = decide(job, found, "")
        assert sorted([*plan(decision), *out(decision)]) == sorted(found.by_deployment)

    @given(specs, catalogs, st.randoms())
    def test_does_not_depend_on_the_order_of_equals(self, job: JobSpec, found: Catalog, random: Any) -> None:
        job = spec(**{f: getattr(job, f) for f in ("privacy", "needs", "prompt_tokens")}, policy="cheapest")
        shuffled = list(found.models[0].deployments)
        random.shuffle(shuffled)
        other = Catalog(models=(Model(name="m", deployments=tuple(shuffled)),), privacy=found.privacy)
        assert set(plan(decide(job, other, ""))) == set(plan(decide(job, found, "")))
        assert out(decide(job, other, "")) == out(decide(job, found, ""))

    @given(specs, catalogs)
    def test_survives_storage(self, job: JobSpec, found: Catalog) -> None:
        decision = decide(job, found, policy_hash(found))
        assert Decision.load(decision.dump()) == decision

    def test_says_under_which_rules(self) -> None:
        one, other = catalog({}), catalog({}, privacy={"public": {"tiers": ["gpu"]}})
        assert decide(spec(), one, policy_hash(one)).policy_hash == policy_hash(one) == policy_hash(catalog({}))
        assert policy_hash(one) != policy_hash(other)

    def test_of_an_unknown_model_is_empty(self) -> None:
        decision = decide(spec(model="gone"), catalog({}), "")
        assert (decision.plan, decision.eliminated) == ((), ())


class TestConstraints:
    @pytest.mark.parametrize(
        ("deployment", "job", "reason"),
        [
            ({"capabilities": ["chat"]}, {"needs": ("chat", "tools")}, "capability"),
            ({"context_window": 100}, {"prompt_tokens": 60, "max_output_tokens": 41}, "context"),
            ({"price": {"output_per_million": 10}}, {"max_output_tokens": 1_000, "max_cost_usd": 0.0099}, "budget"),
        ],
    )
    def test_each_says_what_is_wrong(self, deployment: dict[str, Any], job: dict[str, Any], reason: str) -> None:
        decision = decide(spec(**job), catalog(deployment), "")
        assert out(decision) == {"a": reason}

    @pytest.mark.parametrize(
        ("deployment", "job"),
        [
            ({"context_window": 100}, {"prompt_tokens": 60, "max_output_tokens": 40}),
            ({"price": {"output_per_million": 10}}, {"max_output_tokens": 1_000, "max_cost_usd": 0.01}),
            ({"price": {"output_per_million": 10}}, {"max_output_tokens": 1_000}),
        ],
    )
    def test_the_limit_itself_is_within(self, deployment: dict[str, Any], job: dict[str, Any]) -> None:
        assert plan(decide(spec(**job), catalog(deployment), "")) == ["a"]

    def test_a_region_that_the_label_does_not_permit(self) -> None:
        rules = {"internal": {"tiers": list(TIERS), "regions": ["eu"]}}
        decision = decide(
            spec(), catalog({"tier": "cloud", "region": "us"}, {"tier": "cloud", "region": "eu"}, privacy=rules), ""
        )
        assert (plan(decision), out(decision)) == (["b"], {"a": "region"})

    def test_an_answer_without_a_limit_may_cost_what_the_window_leaves(self) -> None:
        deployment = catalog({"context_window": 1_000, "price": {"output_per_million": 1}}).by_deployment["a"]
        assert worst_cost(spec(prompt_tokens=400), deployment) == pytest.approx(600e-6)
        assert worst_cost(spec(prompt_tokens=400, endpoint="/v1/embeddings"), deployment) == 0


class TestObjectives:
    def test_local_first(self) -> None:
        found = catalog({"tier": "cloud"}, {"tier": "gpu"}, {"tier": "cpu"})
        assert plan(decide(spec(), found, "")) == ["b", "c", "a"]

    def test_cheapest(self) -> None:
        found = catalog({"price": {"input_per_million": 2}}, {"price": {"input_per_million": 1}}, {})
        assert plan(decide(spec(policy="cheapest", prompt_tokens=10), found, "")) == ["c", "b", "a"]

    def test_of_equally_cheap_ones_the_operators_first(self) -> None:
        assert plan(decide(spec(policy="cheapest"), catalog({}, {}, {}), "")) == ["a", "b", "c"]

    def test_an_unknown_policy_runs_nothing(self) -> None:
        decision = decide(spec(policy="nonsense"), catalog({}), "")
        assert out(decision) == {"a": "rule"}


class TestRefusal:
    def test_names_every_reason(self) -> None:
        found = catalog({"tier": "cloud"}, {"context_window": 16})
        job = spec(privacy="restricted", prompt_tokens=20)
        error = refusal(job, decide(job, found, ""), found)
        assert (error.status, error.code, error.fault) == (422, "no_eligible_deployment", "policy")
        assert "a: privacy" in error.message
        assert "b: context" in error.message

    def test_an_unknown_policy_is_the_callers_fault(self) -> None:
        job = spec(policy="nonsense")
        error = refusal(job, decide(job, catalog({}), ""), catalog({}))
        assert (error.status, error.param) == (400, "fabric.policy")
        assert "cheapest" in error.message

    def test_a_model_that_left_the_catalogue(self) -> None:
        job = spec(model="gone")
        assert refusal(job, decide(job, catalog({}), ""), catalog({})).code == "model_not_found"
