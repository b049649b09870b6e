"""Decisions: what is out and why, what is left and in which order. The privacy label is a wall."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.contracts.catalog import PRIVACY_LABELS, TIERS, Catalog, Model
from fabric.contracts.decision import Decision
from fabric.contracts.experience import AnswerLength, Experience, Pace
from fabric.contracts.failures import Chain
from fabric.contracts.job import PRIORITIES, JobSpec
from fabric.contracts.policy import POLICY_KINDS
from fabric.routing import DeploymentState, World, decide, policy_hash, refusal, shape
from fabric.routing.cost import worst_cost
from fabric.routing.forecast import ENOUGH_SAMPLES, FRESH_MS, predict
from fabric.routing.plan import weigh

CHAT = "/v1/chat/completions"
NOW_MS = 1_000_000_000


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
bounds = {"max_cost_usd": st.floats(0, 1), "max_latency_s": st.floats(0.1, 100)}
weights = st.fixed_dictionaries({"cost": st.floats(0.01, 10), "latency": st.floats(0, 10), "quality": st.floats(0, 10)})
catalogs = st.builds(
    lambda deployments, privacy, bounded: catalog(*deployments, privacy=privacy, policies={"bounded": bounded}),
    st.lists(
        st.fixed_dictionaries(
            {
                "tier": tiers,
                "region": regions,
                "data_policy": data_policies,
                "capabilities": needs,
                "context_window": st.integers(16, 4096),
                "price": st.fixed_dictionaries(
                    {"input_per_million": st.floats(0, 100), "output_per_million": st.floats(0, 100)}
                ),
                "quality": st.floats(0, 1),
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
    st.one_of(
        st.fixed_dictionaries({"kind": st.sampled_from(("cheapest", "fastest", "best-quality"))}, optional=bounds),
        st.fixed_dictionaries({"kind": st.just("weighted"), "weights": weights}, optional=bounds),
    ),
)
pasts = st.builds(
    Pace,
    samples=st.integers(0, 50),
    updated_ms=st.sampled_from((NOW_MS, NOW_MS - FRESH_MS - 1)),
    engine_s=st.floats(0, 60),
    base_s=st.floats(0, 10),
    per_prompt_token_s=st.floats(0, 0.01),
    per_output_token_s=st.floats(0, 0.2),
    first_tokens=st.integers(0, 3),
)
states = st.builds(
    DeploymentState,
    workers=st.integers(1, 3),
    slots=st.integers(0, 8),
    capacity=st.integers(0, 16),
    busy=st.integers(0, 30),
)
#: Some of the deployments have workers, some have a past, and something waits.
worlds = st.builds(
    lambda states, paces, length, waiting: World(
        states,
        Experience({(CHAT, name): pace for name, pace in paces.items()}, {(CHAT, "m"): length} if length else {}),
        NOW_MS,
        {("m", priority): jobs for priority, jobs in waiting.items()},
    ),
    st.dictionaries(st.sampled_from("abcdef"), states),
    st.dictionaries(st.sampled_from("abcdef"), pasts),
    st.none() | st.builds(AnswerLength, st.integers(0, 50), st.just(NOW_MS), st.floats(1, 2_000)),
    st.dictionaries(st.sampled_from(PRIORITIES), st.integers(0, 100)),
)
specs = st.builds(
    spec,
    privacy=st.sampled_from(PRIVACY_LABELS),
    needs=needs.map(tuple),
    prompt_tokens=st.integers(0, 5_000),
    max_output_tokens=st.none() | st.integers(1, 5_000),
    max_cost_usd=st.none() | st.floats(0, 1),
    policy=st.sampled_from((None, *POLICY_KINDS, "bounded", "nonsense")),
    priority=st.sampled_from(PRIORITIES),
    deadline_ms=st.none() | st.integers(NOW_MS - 1_000, NOW_MS + 60_000),
    endpoint=st.sampled_from(("/v1/chat/completions", "/v1/embeddings")),
)


class TestTheWall:
    @given(specs, catalogs, worlds)
    def test_no_plan_leaves_what_the_label_permits(self, job: JobSpec, found: Catalog, world: World) -> None:
        rule = found.privacy.of(job.privacy)
        strength = ("none", "no_training", "zero_retention")
        for candidate in decide(job, found, "", world).plan:
            deployment = found.by_deployment[candidate.deployment]
            assert deployment.tier == candidate.tier
            assert deployment.tier in rule.tiers
            if deployment.tier == "cloud":
                assert not rule.redact
                assert rule.regions is None or deployment.region in rule.regions
                assert strength.index(deployment.data_policy) >= strength.index(rule.data_policy)

    @given(specs, catalogs, worlds)
    def test_nor_what_the_job_needs_fits_and_may_cost(self, job: JobSpec, found: Catalog, world: World) -> None:
        for candidate in decide(job, found, "", world).plan:
            deployment = found.by_deployment[candidate.deployment]
            assert set(job.needs) <= set(deployment.capabilities)
            assert job.prompt_tokens + (job.max_output_tokens or 0) <= deployment.context_window
            policy = found.by_policy[job.policy or found.default_policy]
            for cap in (job.max_cost_usd, policy.max_cost_usd):
                assert cap is None or candidate.expected_cost_usd <= worst_cost(job, deployment) <= cap
            if candidate.measured and candidate.expected_finish_s is not None:
                assert job.deadline_ms is None or candidate.expected_finish_s <= (job.deadline_ms - NOW_MS) / 1000
                assert policy.max_latency_s is None or candidate.expected_finish_s <= policy.max_latency_s

    @given(specs, catalogs, worlds)
    def test_a_stronger_label_never_opens_a_place(self, job: JobSpec, found: Catalog, world: World) -> None:
        """As far as the rules of the labels are ordered themselves: here the defaults are."""
        found = found.model_copy(update={"privacy": Catalog().privacy})
        found.__dict__.pop("by_model", None)
        allowed = [set(plan(decide(replace(job, privacy=label), found, "", world))) for label in PRIVACY_LABELS]
        assert allowed[0] >= allowed[1] >= allowed[2]
        assert allowed[1] >= allowed[3]

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
    @given(specs, catalogs, worlds)
    def test_accounts_for_every_candidate_once(self, job: JobSpec, found: Catalog, world: World) -> None:
        decision = decide(job, found, "", world)
        assert sorted([*plan(decision), *out(decision)]) == sorted(found.by_deployment)

    @settings(max_examples=300)
    @given(specs, catalogs, worlds, st.randoms())
    def test_does_not_depend_on_the_order_in_which_candidates_are_looked_at(
        self, job: JobSpec, found: Catalog, world: World, random: Any
    ) -> None:
        policy = found.by_policy.get(job.policy or "", found.by_policy["bounded"])
        candidates = list(enumerate(found.models[0].deployments))
        rule = found.privacy.of(job.privacy)
        first = weigh(job, candidates, rule, policy, world, 0.0)
        random.shuffle(candidates)
        assert weigh(job, candidates, rule, policy, world, 0.0) == first

    @given(specs, catalogs, worlds, st.randoms())
    def test_another_order_of_the_operators_changes_what_is_preferred_and_nothing_else(
        self, job: JobSpec, found: Catalog, world: World, random: Any
    ) -> None:
        shuffled = list(found.models[0].deployments)
        random.shuffle(shuffled)
        other = found.model_copy(update={"models": (Model(name="m", deployments=tuple(shuffled)),)})
        other.__dict__.pop("by_model", None)
        one, two = decide(job, found, "", world), decide(job, other, "", world)
        assert sorted(map(repr, one.plan)) == sorted(map(repr, two.plan))
        assert out(one) == out(two)
        assert [(not p.live, p.score) for p in one.plan] == [(not p.live, p.score) for p in two.plan]

    @settings(max_examples=300)
    @given(specs, catalogs, worlds)
    def test_is_never_worse_for_one_more_candidate(self, job: JobSpec, found: Catalog, world: World) -> None:
        model = found.models[0]
        fewer = found.model_copy(update={"models": (model.model_copy(update={"deployments": model.deployments[:-1]}),)})
        fewer.__dict__.pop("by_model", None)
        world = replace(world, waiting={})
        before, after = decide(job, fewer, "", world).chosen, decide(job, found, "", world).chosen
        if before is not None:
            assert after is not None
            assert (not after.live, after.score) <= (not before.live, before.score)

    @given(specs, catalogs, worlds)
    def test_survives_storage(self, job: JobSpec, found: Catalog, world: World) -> None:
        decision = decide(job, found, policy_hash(found), world)
        assert Decision.load(decision.dump()) == decision

    @given(specs, specs, catalogs, worlds)
    def test_is_the_same_for_jobs_of_one_shape(self, one: JobSpec, two: JobSpec, found: Catalog, world: World) -> None:
        two = replace(one, id="job_2", tenant=two.tenant, tags=("t",), custom_id="c", batch_id="b")
        assert shape(one) == shape(two)
        assert decide(one, found, "", world) == decide(two, found, "", world)

    @settings(max_examples=2_000, deadline=None)
    @given(specs, catalogs, worlds, st.randoms())
    def test_keeps_all_laws_of_thousands(self, job: JobSpec, found: Catalog, world: World, random: Any) -> None:
        """The same laws as above, each of the same job, candidates and policy: no constraint is violated, the order of
        the candidates changes nothing, and one more makes the best no worse."""
        laws = (
            TestTheWall.test_no_plan_leaves_what_the_label_permits,
            TestTheWall.test_nor_what_the_job_needs_fits_and_may_cost,
            TestADecision.test_is_never_worse_for_one_more_candidate,
        )
        for law in laws:
            law.hypothesis.inner_test(self, job, found, world)  # type: ignore[attr-defined]
        order = TestADecision.test_does_not_depend_on_the_order_in_which_candidates_are_looked_at
        order.hypothesis.inner_test(self, job, found, world, random)  # type: ignore[attr-defined]

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


class TestPolicies:
    def test_local_first(self) -> None:
        found = catalog({"tier": "cloud"}, {"tier": "gpu"}, {"tier": "cpu"})
        assert plan(decide(spec(), found, "")) == ["b", "c", "a"]

    def test_cloud_first(self) -> None:
        found = catalog({"tier": "cpu"}, {"tier": "cloud"}, {"tier": "gpu"})
        assert plan(decide(spec(policy="cloud-first"), found, "")) == ["b", "a", "c"]

    def test_cheapest(self) -> None:
        found = catalog({"price": {"input_per_million": 2}}, {"price": {"input_per_million": 1}}, {})
        assert plan(decide(spec(policy="cheapest", prompt_tokens=10), found, "")) == ["c", "b", "a"]

    def test_of_equally_cheap_ones_the_operators_first(self) -> None:
        assert plan(decide(spec(policy="cheapest"), catalog({}, {}, {}), "")) == ["a", "b", "c"]

    def test_fastest(self) -> None:
        found = catalog({"tier": "cpu"}, {"tier": "gpu"})
        assert plan(decide(spec(policy="fastest"), found, "")) == ["b", "a"], "as is usual for the tiers"
        world = World({name: DeploymentState(1, 1, 2) for name in "ab"}, measured(a=0.001, b=0.5), NOW_MS)
        assert plan(decide(spec(policy="fastest"), found, "", world)) == ["a", "b"], "as was measured"

    def test_best_quality(self) -> None:
        found = catalog({"quality": 0.3}, {"quality": 0.9}, {"quality": 0.9})
        assert plan(decide(spec(policy="best-quality"), found, "")) == ["b", "c", "a"]

    @pytest.mark.parametrize(("counts", "first"), [("cost", "a"), ("latency", "b"), ("quality", "c")])
    def test_weighted_by_what_counts(self, counts: str, first: str) -> None:
        dear = {"output_per_million": 50}
        weights = {"cost": 0.1, "latency": 0.1, "quality": 0.1} | {counts: 9}
        found = catalog(
            {"tier": "cpu"},
            {"tier": "gpu", "price": dear},
            {"tier": "cpu", "price": dear, "quality": 0.9},
            policies={"mine": {"kind": "weighted", "weights": weights}},
        )
        decision = decide(spec(policy="mine"), found, "")
        assert plan(decision)[0] == first
        assert all(0 <= candidate.score <= 1 for candidate in decision.plan)

    def test_limits_hold_for_every_kind(self) -> None:
        dear = {"price": {"output_per_million": 10}}
        for kind in POLICY_KINDS:
            weights = {"weights": {"quality": 1}} if kind == "weighted" else {}
            found = catalog({}, dear, policies={"p": {"kind": kind, "max_cost_usd": 0.001, **weights}})
            decision = decide(spec(policy="p", max_output_tokens=1_000), found, "")
            assert (plan(decision), out(decision)) == (["a"], {"b": "budget"}), kind

    def test_the_stricter_cap_counts(self) -> None:
        found = catalog({"price": {"output_per_million": 10}}, policies={"p": {"kind": "cheapest", "max_cost_usd": 1}})
        job = spec(policy="p", max_output_tokens=1_000, max_cost_usd=0.001)
        assert out(decide(job, found, "")) == {"a": "budget"}

    def test_a_configured_one_takes_the_place_of_a_built_in_one(self) -> None:
        found = catalog({"quality": 0.1}, {"quality": 0.9}, policies={"cheapest": {"kind": "best-quality"}})
        assert plan(decide(spec(policy="cheapest"), found, "")) == ["b", "a"]

    def test_the_default_one_is_configured(self) -> None:
        found = catalog({"quality": 0.1}, {"quality": 0.9}, default_policy="best-quality")
        decision = decide(spec(), found, "")
        assert (decision.policy, plan(decision)) == ("best-quality", ["b", "a"])

    def test_they_are_part_of_the_rules(self) -> None:
        one = catalog({}, policies={"p": {"kind": "fastest"}})
        assert len({policy_hash(found) for found in (catalog({}), one, catalog({}, default_policy="fastest"))}) == 3

    def test_one_that_is_gone_runs_nothing(self) -> None:
        decision = decide(spec(policy="nonsense"), catalog({}), "")
        assert out(decision) == {"a": "rule"}


def measured(samples: int = ENOUGH_SAMPLES, updated_ms: int = NOW_MS, **token_s: float) -> Experience:
    """Deployment -> seconds per output token; answers have 100 tokens."""
    paces = {
        (CHAT, name): Pace(samples, updated_ms, 100 * s, 0.0, 0.0, s, first_tokens=samples)
        for name, s in token_s.items()
    }
    return Experience(paces, {(CHAT, "m"): AnswerLength(samples, updated_ms, 100.0)})


class TestDeadlines:
    def world(self, experience: Experience, busy: int = 0) -> World:
        return World({name: DeploymentState(1, 1, 2, busy) for name in "ab"}, experience, NOW_MS)

    def test_a_place_that_would_be_late_is_out(self) -> None:
        job = spec(deadline_ms=NOW_MS + 5_000)
        decision = decide(job, catalog({}, {}), "", self.world(measured(a=0.1, b=0.01)))
        assert (plan(decision), out(decision)) == (["b"], {"a": "deadline"})
        assert "10.0 s, 5.0 s are left" in decision.eliminated[0].detail

    def test_so_is_one_that_a_policys_latency_limit_excludes(self) -> None:
        found = catalog({}, {}, policies={"quick": {"kind": "cheapest", "max_latency_s": 5}})
        decision = decide(spec(policy="quick"), found, "", self.world(measured(a=0.1, b=0.01)))
        assert (plan(decision), out(decision)) == (["b"], {"a": "deadline"})

    def test_the_wait_counts(self) -> None:
        job = spec(deadline_ms=NOW_MS + 5_000, priority="standard")
        crowded = self.world(measured(a=0.01, b=0.01), busy=6)
        assert out(decide(job, catalog({}), "", crowded)) == {"a": "deadline"}

    @pytest.mark.parametrize(
        "experience",
        [
            Experience(),
            measured(samples=ENOUGH_SAMPLES - 1, a=9.0),
            measured(updated_ms=NOW_MS - FRESH_MS - 1, a=9.0),
            Experience(measured(a=9.0).paces, {}),
        ],
        ids=["nothing measured", "too little", "too long ago", "not how long answers get"],
    )
    def test_a_guess_eliminates_nobody(self, experience: Experience) -> None:
        job = spec(deadline_ms=NOW_MS + 100)
        assert plan(decide(job, catalog({}), "", self.world(experience))) == ["a"]

    def test_when_all_would_be_late_the_job_is_told_so(self) -> None:
        job, found = spec(deadline_ms=NOW_MS + 5_000, privacy="restricted"), catalog({}, {"tier": "cloud"})
        error = refusal(job, decide(job, found, "", self.world(measured(a=1.0))), found, NOW_MS)
        assert (error.code, error.status) == ("deadline_exceeded", 504)
        assert "a: deadline" in error.message
        assert "b: privacy" in error.message

    def test_a_policys_latency_limit_is_no_deadline(self) -> None:
        found = catalog({}, policies={"quick": {"kind": "cheapest", "max_latency_s": 5}})
        job = spec(policy="quick", deadline_ms=NOW_MS + 86_400_000)
        error = refusal(job, decide(job, found, "", self.world(measured(a=1.0))), found, NOW_MS)
        assert (error.code, error.status) == ("no_eligible_deployment", 422)


class TestHealth:
    def test_a_dead_place_goes_behind_every_live_one(self) -> None:
        found = catalog({"tier": "cpu"}, {"tier": "gpu"}, {"tier": "cloud"})
        decision = decide(spec(), found, "", World({"c": DeploymentState(1, 4, 8)}))
        assert plan(decision) == ["c", "a", "b"]
        assert [place.live for place in decision.plan] == [True, False, False]

    def test_but_it_stays_where_nothing_else_is_permitted(self) -> None:
        found = catalog({"tier": "cpu"}, {"tier": "cloud"})
        decision = decide(spec(privacy="restricted"), found, "", World({"b": DeploymentState(1, 4, 8)}))
        assert plan(decision) == ["a"]
        assert decision.chosen is not None
        assert (decision.chosen.live, decision.chosen.expected_finish_s) == (False, None)


class TestForecast:
    DEPLOYMENT = catalog({}).by_deployment["a"]

    def world(self, busy: int = 0, slots: int = 2, **fields: Any) -> World:
        pace = Pace(
            9, NOW_MS, engine_s=4.0, base_s=0.5, per_prompt_token_s=0.01, per_output_token_s=0.1, first_tokens=9
        )
        experience = Experience({(CHAT, "a"): pace}, {(CHAT, "m"): AnswerLength(9, NOW_MS, 30.0)})
        return World({"a": DeploymentState(1, slots, 2 * slots, busy)}, experience, NOW_MS, **fields)

    def test_prefill_and_decode_add_up(self) -> None:
        seen = predict(spec(prompt_tokens=50), self.DEPLOYMENT, self.world())
        assert (seen.wait_s, seen.output_tokens, seen.measured) == (0.0, 30.0, True)
        assert seen.first_token_s == pytest.approx(0.5 + 50 * 0.01)
        assert seen.finish_s == pytest.approx(1.0 + 30 * 0.1)

    def test_a_limit_bounds_the_answer(self) -> None:
        assert predict(spec(max_output_tokens=10), self.DEPLOYMENT, self.world()).output_tokens == 10

    @pytest.mark.parametrize(("busy", "wait_s"), [(1, 0.0), (2, 2.0), (5, 8.0)])
    def test_who_waits_waits_for_those_before(self, busy: int, wait_s: float) -> None:
        seen = predict(spec(priority="standard"), self.DEPLOYMENT, self.world(busy))
        assert seen.wait_s == pytest.approx(wait_s)

    def test_interactive_jobs_wait_only_for_a_slot_where_others_let_them_go_first(self) -> None:
        filled = self.world(busy=5, filled=frozenset({"m"}))
        assert predict(spec(), self.DEPLOYMENT, filled).wait_s == pytest.approx(2.0)
        assert predict(spec(), self.DEPLOYMENT, self.world(busy=5)).wait_s == pytest.approx(8.0)

    def test_a_backlog_is_waited_for(self) -> None:
        world = self.world(waiting={("m", "interactive"): 3, ("m", "batch"): 99, ("other", "interactive"): 99})
        chosen = decide(spec(), catalog({}), "", world).chosen
        assert chosen is not None
        assert chosen.expected_wait_s == pytest.approx(3 * 4.0 / 2)

    def test_embeddings_have_no_answer_to_write(self) -> None:
        seen = predict(spec(endpoint="/v1/embeddings"), self.DEPLOYMENT, self.world())
        assert seen.output_tokens == 0

    def test_an_engine_that_never_says_when_its_first_token_comes(self) -> None:
        pace = Pace(9, NOW_MS, 4.0, 0.0, 0.0, 0.1, first_tokens=0)
        world = World({"a": DeploymentState(1, 1, 2)}, Experience({(CHAT, "a"): pace}), NOW_MS)
        seen = predict(spec(), self.DEPLOYMENT, world)
        assert seen.first_token_s is None
        assert seen.finish_s is not None

    @given(specs, worlds)
    def test_times_are_in_order(self, job: JobSpec, world: World) -> None:
        seen = predict(job, self.DEPLOYMENT, world)
        assert seen.service_s >= 0
        if seen.wait_s is not None and seen.finish_s is not None:
            assert 0 <= seen.wait_s <= (seen.first_token_s or seen.wait_s) <= seen.finish_s


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
        assert (error.status, error.param, error.code) == (400, "fabric.policy", "unknown_policy")
        assert "cheapest" in error.message

    def test_a_model_that_left_the_catalogue(self) -> None:
        job = spec(model="gone")
        assert refusal(job, decide(job, catalog({}), ""), catalog({})).code == "model_not_found"


def test_a_pinned_job_runs_at_that_deployment_or_nowhere() -> None:
    places = catalog({}, {}, {"tier": "cloud"})
    rules = policy_hash(places)
    live = World({"a": DeploymentState(1, 4, 8, 0)})
    decision = decide(spec(deployment="b"), places, rules, live)
    assert (plan(decision), out(decision)) == (["b"], {"a": "rule", "c": "rule"})

    walled = decide(spec(deployment="c", privacy="restricted"), places, rules)
    assert (plan(walled), out(walled)) == ([], {"a": "rule", "b": "rule", "c": "privacy"})
    assert refusal(spec(deployment="c", privacy="restricted"), walled, places).code == "no_eligible_deployment"

    long = spec(deployment="b", prompt_tokens=10_000)
    assert refusal(long, decide(long, places, rules), places).code == "context_length_exceeded"
    gone = spec(deployment="z")
    assert refusal(gone, decide(gone, places, rules), places).code == "no_eligible_deployment"
    assert shape(spec(deployment="a")) != shape(spec())


class TestPlanned:
    """A line of a batch that is planned as a whole."""

    CATALOG = catalog({"tier": "cpu"}, {"tier": "cloud"}, {"tier": "gpu"})
    EVERYBODY = World({name: DeploymentState(1, 2, 4) for name in "abc"}, now_ms=NOW_MS)

    def test_it_waits_for_its_place(self) -> None:
        decision = decide(spec(planned="b"), self.CATALOG, "h", self.EVERYBODY)
        assert plan(decision) == ["b"]
        assert out(decision) == {"a": "rule", "c": "rule"}

    def test_where_nobody_works_any_more_it_is_as_any(self) -> None:
        others = World({name: DeploymentState(1, 2, 4) for name in "ac"}, now_ms=NOW_MS)
        assert plan(decide(spec(planned="b"), self.CATALOG, "h", others)) == ["a", "c", "b"]

    def test_where_it_may_not_go_it_is_as_any(self) -> None:
        decision = decide(spec(planned="b", privacy="restricted"), self.CATALOG, "h", self.EVERYBODY)
        assert plan(decision) == ["a", "c"]
        assert out(decision) == {"b": "privacy"}

    def test_where_its_tries_are_used_up_it_is_as_any(self) -> None:
        tried = Chain((("b", "engine_error"),))
        decision = decide(spec(planned="b"), self.CATALOG, "h", self.EVERYBODY, tried)
        assert plan(decision) == ["a", "c"]

    def test_a_place_that_is_not_there_any_more(self) -> None:
        assert plan(decide(spec(planned="gone"), self.CATALOG, "h", self.EVERYBODY)) == ["a", "c", "b"]

    def test_its_shape_is_its_own(self) -> None:
        assert shape(spec(planned="a")) != shape(spec())
