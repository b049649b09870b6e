"""Rules: which one counts, when, and what comes of it. None of them opens what a label closes."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.contracts.budget import NANO
from fabric.contracts.catalog import PRIVACY_LABELS, TIERS, Catalog
from fabric.contracts.decision import Decision
from fabric.contracts.job import PRIORITIES, JobSpec
from fabric.routing import (
    Denied,
    DeploymentState,
    Moment,
    World,
    admit,
    budgets,
    decide,
    places_tag,
    policy_hash,
    reads_budgets,
    rulebook,
    shape,
    unreachable,
)

CHAT = "/v1/chat/completions"
PLACES: tuple[dict[str, Any], ...] = (
    {"name": "cpu-1", "tier": "cpu"},
    {"name": "gpu-1", "tier": "gpu"},
    {"name": "eu-1", "tier": "cloud", "region": "eu"},
    {"name": "us-1", "tier": "cloud", "region": "us"},
)
NOW_MS = int(datetime(2026, 3, 14, 21, 30, tzinfo=UTC).timestamp() * 1000)  #: a Saturday


def catalog(*rules: dict[str, Any], **fields: Any) -> Catalog:
    models = [{"name": "m", "deployments": [{"engine": "mock", **place} for place in PLACES]}]
    return Catalog.model_validate({"models": models, "rules": rules, **fields})


def spec(**fields: Any) -> JobSpec:
    return JobSpec(**({"id": "job_1", "endpoint": CHAT, "model": "m"} | fields))


def world(**busy: int) -> World:
    """Every place has a worker with 4 slots."""
    states = {str(p["name"]): DeploymentState(1, 4, 8, busy.get(p["name"].partition("-")[0], 0)) for p in PLACES}
    return World(states, now_ms=NOW_MS)


def decided(job: JobSpec, found: Catalog, seen: World | None = None) -> Decision:
    return decide(job, found, policy_hash(found), seen or world())


def plan(decision: Decision) -> list[str]:
    return [place.deployment for place in decision.plan]


class TestWhereAJobRuns:
    def test_require_leaves_nothing_else(self) -> None:
        found = catalog({"name": "local", "when": '"pii" in tags', "require": {"tier": ["cpu", "gpu"]}})
        decision = decided(spec(tags=("pii",)), found)
        assert (plan(decision), decision.rule) == (["cpu-1", "gpu-1"], "local")
        assert {(out.reason, out.detail) for out in decision.eliminated} == {
            ("rule", "'local' requires tier cpu or gpu")
        }
        assert plan(decided(spec(), found)) == ["cpu-1", "gpu-1", "eu-1", "us-1"]

    @pytest.mark.parametrize(
        ("where", "left"),
        [
            ({"region": "eu"}, ["eu-1"]),
            ({"tier": "cloud", "region": ["us", "local"]}, ["us-1"]),
            ({"deployment": ["us-1", "cpu-1"]}, ["cpu-1", "us-1"]),
            ({"tier": "cpu", "deployment": "us-1"}, []),
        ],
    )
    def test_all_that_is_required_must_hold(self, where: dict[str, Any], left: list[str]) -> None:
        assert plan(decided(spec(), catalog({"require": where}))) == left

    def test_prefer_goes_before_the_score(self) -> None:
        assert plan(decided(spec(), catalog({"prefer": {"region": "us"}}))) == ["us-1", "cpu-1", "gpu-1", "eu-1"]

    def test_but_not_before_being_alive(self) -> None:
        alive = World({"cpu-1": DeploymentState(1, 4, 8)}, now_ms=NOW_MS)
        assert plan(decided(spec(), catalog({"prefer": {"region": "us"}}), alive))[:2] == ["cpu-1", "us-1"]

    def test_a_rules_policy_goes_before_the_requests(self) -> None:
        found = catalog({"when": 'policy == "fastest"', "set": {"policy": "cloud-first"}})
        decision = decided(spec(policy="fastest"), found)
        assert (decision.policy, plan(decision)[0]) == ("cloud-first", "eu-1")
        assert decided(spec(policy="cheapest"), found).policy == "cheapest"

    def test_the_first_that_matches_counts(self) -> None:
        found = catalog(
            {"when": '"a" in tags', "require": {"tier": "cpu"}},
            {"when": '"b" in tags', "allow": True},
            {"require": {"tier": "gpu"}},
        )
        assert plan(decided(spec(tags=("a", "b")), found)) == ["cpu-1"]
        assert len(plan(decided(spec(tags=("b",)), found))) == 4
        assert plan(decided(spec(), found)) == ["gpu-1"]

    def test_a_rule_of_the_door_hides_none_that_places(self) -> None:
        """Otherwise a job that came in before the hour would escape what is asked of its place after it."""
        found = catalog({"when": "hour >= 21", "deny": "closed"}, {"require": {"tier": "cpu"}})
        assert plan(decided(spec(), found)) == ["cpu-1"]

    def test_the_load_of_a_tier_counts_as_it_is(self) -> None:
        found = catalog({"when": "load.cpu >= 1.0", "require": {"tier": "gpu"}})
        assert plan(decided(spec(), found, world(cpu=4))) == ["gpu-1"]
        assert len(plan(decided(spec(), found, world(cpu=3)))) == 4
        assert plan(decided(spec(), found, World())) == ["gpu-1"], "nobody works there: it is full"

    @pytest.mark.parametrize(("zone", "holds"), [("UTC", False), ("Europe/Berlin", True), ("America/New_York", False)])
    def test_the_clock_is_the_configured_ones(self, zone: str, holds: bool) -> None:
        found = catalog({"when": 'hour == 22 && weekday == "sat"', "require": {"tier": "cpu"}}, rule_timezone=zone)
        assert (plan(decided(spec(), found)) == ["cpu-1"]) is holds

    def test_the_wall_stands_before_every_rule(self) -> None:
        decision = decided(spec(privacy="restricted"), catalog({"require": {"tier": "cloud"}}))
        assert decision.plan == ()
        reasons = {out.deployment: out.reason for out in decision.eliminated}
        assert reasons == {"cpu-1": "rule", "gpu-1": "rule", "eu-1": "privacy", "us-1": "privacy"}


class TestACanary:
    def test_takes_its_share_and_stays_a_net_for_the_rest(self) -> None:
        found = catalog({"name": "try", "canary": {"deployment": "us-1", "weight": 0.25}})
        plans = [plan(decided(spec(id=f"job_{n}"), found)) for n in range(2_000)]
        first = sum(order[0] == "us-1" for order in plans)
        assert 400 < first < 600
        assert all(order[0] == "us-1" or order[-1] == "us-1" for order in plans)

    def test_is_drawn_from_the_jobs_id(self) -> None:
        found = catalog({"canary": {"deployment": "us-1", "weight": 0.5}})
        for n in range(50):
            job = spec(id=f"job_{n}")
            assert len({decided(job, found).dump() for _ in range(3)}) == 1

    def test_two_jobs_that_are_drawn_apart_have_no_common_shape(self) -> None:
        found = catalog({"canary": {"deployment": "us-1", "weight": 0.5}})
        book = rulebook(found, "h")
        assert book is not None
        moment = Moment(book, world())
        jobs = [spec(id=f"job_{n}") for n in range(50)]
        by_shape: dict[Any, set[str]] = {}
        for job in jobs:
            by_shape.setdefault(shape(job, moment.placing(job)), set()).add(plan(decided(job, found))[0])
        assert sorted(map(sorted, by_shape.values())) == [["cpu-1"], ["us-1"]]


class TestAtTheDoor:
    def let_in(self, job: JobSpec, *rules: dict[str, Any]) -> Any:
        found = catalog(*rules)
        return admit(job, found, policy_hash(found), NOW_MS)

    def test_deny_says_its_sentence(self) -> None:
        with pytest.raises(Denied) as caught:
            self.let_in(spec(), {"name": "no", "deny": "Not today."})
        assert (caught.value.message, caught.value.info.status, caught.value.rule) == ("Not today.", 403, "no")

    def test_allow_ends_the_questions(self) -> None:
        rules = ({"when": 'tenant == "us"', "allow": True}, {"deny": "Not you."})
        assert self.let_in(spec(tenant="us"), *rules).spec == spec(tenant="us")
        with pytest.raises(Denied):
            self.let_in(spec(), *rules)

    def test_priority_is_set(self) -> None:
        assert self.let_in(spec(), {"set": {"priority": "batch"}}).spec.priority == "batch"

    @pytest.mark.parametrize(("own_s", "gets_s"), [(None, 60), (30, 30), (90, 60)])
    def test_the_earlier_deadline_counts(self, own_s: int | None, gets_s: int) -> None:
        own = None if own_s is None else NOW_MS + own_s * 1000
        admitted = self.let_in(spec(deadline_ms=own), {"set": {"deadline_s": 60}}).spec
        assert admitted.deadline_ms == NOW_MS + gets_s * 1000

    def test_only_public_text_without_finds_is_shadowed(self) -> None:
        rule = {"shadow": {"deployment": "us-1", "weight": 1}}
        assert self.let_in(spec(privacy="public"), rule).shadow == "us-1"
        for label in PRIVACY_LABELS[1:]:
            assert self.let_in(spec(privacy=label), rule).shadow is None
        assert self.let_in(spec(privacy="public", entities=("email",)), rule).shadow is None
        assert self.let_in(spec(privacy="public", shadow_of="job_0"), rule).shadow is None

    def test_headers_that_were_let_in_can_be_read(self) -> None:
        found = catalog({"when": 'header.x_team == "a"', "deny": "no"}, rule_headers=["x-team"])
        with pytest.raises(Denied):
            admit(spec(headers=(("x-team", "a"),)), found, "h", NOW_MS)
        admit(spec(), found, "h", NOW_MS)


class TestRulesThatCannotCount:
    @pytest.mark.parametrize(
        "when",
        [
            "false",
            'model == "none-such"',
            'model == "m" && privacy == "secret"',
            "hour == 24",
            'weekday == "monday"',
            'time == "24:00"',
            'privacy == "public" && privacy == "internal" && "x" in tags',
            '"x" in tags && !("x" in tags)',
            """("x" in tags || 'card' in entities) && !('x' in tags) && !("card" in entities)""",
        ],
    )
    def test_one_that_is_false_whatever_comes(self, when: str) -> None:
        ((number, why),) = unreachable(catalog({"when": when, "deny": "no"}))
        assert (number, "can never match" in why) == (0, True)

    @pytest.mark.parametrize(
        ("when", "listed", "known"),
        [
            ("'persn' in entities || 'x' in tags", "entities", "phone, secret"),
            ("!('persn' in entities)", "entities", "badge, card"),
            ("'toolz' in needs", "needs", "tools"),
        ],
    )
    def test_a_name_that_no_list_can_hold(self, when: str, listed: str, known: str) -> None:
        privacy = {"detectors": [{"entity": "badge", "pattern": "B-[0-9]{4}"}]}
        ((number, why),) = unreachable(catalog({"when": when, "deny": "no"}, privacy=privacy))
        assert number == 0
        assert f"in `{listed}`" in why and known in why
        assert unreachable(catalog({"when": "'badge' in entities", "deny": "no"}, privacy=privacy)) == []

    def test_lists_that_are_read_otherwise_are_left_open(self) -> None:
        for when in ('"x" in tags && size(tags) > 3', 'tags.exists(t, t == "a") && !("a" in tags)'):
            assert unreachable(catalog({"when": when, "deny": "no"})) == []

    def test_one_that_those_before_it_cover_by_tags(self) -> None:
        found = catalog(
            {"name": "tagged", "when": '"x" in tags', "deny": "a"},
            {"name": "both", "when": '"x" in tags && "y" in tags', "deny": "b"},
            {"when": '"y" in tags', "deny": "c"},
        )
        ((number, why),) = unreachable(found)
        assert (number, "'tagged'" in why) == (1, True)

    def test_one_behind_an_unconditional_one(self) -> None:
        found = catalog({"require": {"tier": "cpu"}}, {"when": '"x" in tags', "prefer": {"tier": "gpu"}})
        ((number, why),) = unreachable(found)
        assert (number, "'rule 1'" in why) == (1, True)

    def test_one_that_those_before_it_cover_together(self) -> None:
        found = catalog(
            {"name": "day", "when": "hour < 18", "deny": "a"},
            {"name": "night", "when": "hour >= 18", "deny": "b"},
            {"when": 'tenant == "x"', "deny": "c"},
        )
        assert [number for number, _ in unreachable(found)] == [2]

    def test_rules_of_different_moments_cover_nothing_of_each_other(self) -> None:
        assert unreachable(catalog({"deny": "no"}, {"require": {"tier": "cpu"}})) == []

    def test_what_can_be_true_is_left_alone(self) -> None:
        found = catalog(
            {"when": 'tenant == "a" && prompt_tokens > 5', "deny": "no"},
            {"when": 'weekday in ["sat", "sun"] && time > "18:00"', "prefer": {"tier": "cloud"}},
            {"when": "load.cpu > 0.5", "prefer": {"tier": "gpu"}},
            {"prefer": {"tier": "cpu"}},
        )
        assert unreachable(found) == []


def test_where_rules_read_the_clock_waiting_jobs_are_looked_at_again() -> None:
    fixed, moving = catalog({"require": {"tier": "cpu"}}), catalog({"when": "hour > 5", "require": {"tier": "cpu"}})
    assert places_tag(fixed, "f", 0) == places_tag(fixed, "f", 10**9) == "f"
    assert places_tag(moving, "v", 0) == places_tag(moving, "v", 59_999) != places_tag(moving, "v", 60_000)


conditions = st.sampled_from(
    (
        None,
        '"x" in tags',
        'privacy != "public"',
        "prompt_tokens > 100",
        "load.cpu > 0.5",
        'tenant == "t" || hour > 5',
        'priority == "batch"',
    )
)
wheres = st.fixed_dictionaries(
    {"tier": st.sets(st.sampled_from(TIERS), min_size=1).map(sorted)},
    optional={"region": st.sets(st.sampled_from(("local", "eu", "us")), min_size=1).map(sorted)},
)
shares = st.fixed_dictionaries({"deployment": st.sampled_from([p["name"] for p in PLACES]), "weight": st.just(0.5)})
acts = st.one_of(
    st.just({"allow": True}),
    st.just({"deny": "no"}),
    st.fixed_dictionaries(
        {"require": wheres},
        optional={"prefer": wheres, "canary": shares, "set": st.just({"policy": "cheapest"}), "shadow": shares},
    ),
    st.fixed_dictionaries({"canary": shares}, optional={"prefer": wheres}),
    st.just({"set": {"priority": "batch", "deadline_s": 5}}),
)
rules = st.lists(st.builds(lambda when, act: {"when": when, **act}, conditions, acts), max_size=4)
jobs = st.builds(
    spec,
    id=st.integers(0, 100).map("job_{}".format),
    privacy=st.sampled_from(PRIVACY_LABELS),
    priority=st.sampled_from(PRIORITIES),
    tags=st.sampled_from(((), ("x",))),
    tenant=st.sampled_from("tu"),
    prompt_tokens=st.integers(0, 200),
)
worlds = st.builds(world, cpu=st.integers(0, 8), gpu=st.integers(0, 8))


class TestLaws:
    """As those without rules, whatever the rules are."""

    @given(jobs, rules, worlds)
    def test_a_rule_only_ever_closes(self, job: JobSpec, given_rules: list[dict[str, Any]], seen: World) -> None:
        ruled, free = decided(job, catalog(*given_rules), seen), decided(job, catalog(), seen)
        assert set(plan(ruled)) <= set(plan(free))
        assert {out.deployment for out in ruled.eliminated} | set(plan(ruled)) == {p["name"] for p in PLACES}

    @given(jobs, rules, worlds)
    def test_the_label_stays_as_it_is(self, job: JobSpec, given_rules: list[dict[str, Any]], seen: World) -> None:
        found = catalog(*given_rules)
        try:
            admission = admit(job, found, policy_hash(found), NOW_MS)
        except Denied:
            return
        assert admission.spec.privacy == job.privacy
        assert admission.spec.needs == job.needs
        assert admission.shadow is None or job.privacy == "public"
        for place in decided(admission.spec, found, seen).plan:
            assert place.tier in found.privacy.of(job.privacy).tiers

    @given(jobs, jobs, rules, worlds)
    def test_jobs_of_one_shape_are_decided_alike(
        self, one: JobSpec, two: JobSpec, given_rules: list[dict[str, Any]], seen: World
    ) -> None:
        found = catalog(*given_rules)
        book = rulebook(found, policy_hash(found))
        if book is not None:
            moment = Moment(book, seen)
            same = shape(one, moment.placing(one)) == shape(two, moment.placing(two))
            assert not same or decided(one, found, seen) == decided(two, found, seen)

    @given(jobs, rules, worlds, st.permutations(range(len(PLACES))))
    def test_another_order_of_the_places_changes_what_is_preferred_and_nothing_else(
        self, job: JobSpec, given_rules: list[dict[str, Any]], seen: World, order: list[int]
    ) -> None:
        models = [{"name": "m", "deployments": [{"engine": "mock", **PLACES[n]} for n in order]}]
        one, two = decided(job, catalog(*given_rules), seen), decided(job, catalog(*given_rules, models=models), seen)
        assert sorted(plan(one)) == sorted(plan(two))
        assert [place.score for place in one.plan] == [place.score for place in two.plan]

    @given(jobs, rules, worlds, st.sampled_from([p["name"] for p in PLACES]))
    def test_one_more_place_changes_nothing_between_the_others(
        self, job: JobSpec, given_rules: list[dict[str, Any]], seen: World, left_out: str
    ) -> None:
        """So the best is never worse for it. A tier's load counts its places: rules that read it are left out."""
        given_rules = [rule for rule in given_rules if "load" not in (rule["when"] or "")]
        models = [{"name": "m", "deployments": [{"engine": "mock", **p} for p in PLACES if p["name"] != left_out]}]
        before, after = (
            decided(job, catalog(*given_rules, models=models), seen),
            decided(job, catalog(*given_rules), seen),
        )
        assert plan(before) == [name for name in plan(after) if name != left_out]


class TestBudgetUsed:
    CATALOG = catalog(
        {"when": "budget_used > 0.8", "require": {"tier": "cpu"}},
        budgets=[{"name": "acme", "usd": 10, "tenant": "acme"}, {"name": "all", "usd": 100, "hard": False}],
    )

    @pytest.mark.parametrize(
        ("tenant", "used", "home"),
        [
            ("acme", {"acme": 0.9, "all": 0.1}, True),
            ("acme", {"acme": 0.1, "all": 0.9}, True),
            ("other", {"acme": 0.9, "all": 0.1}, False),
            ("acme", {"acme": 0.8}, False),
            ("acme", {}, False),
        ],
    )
    def test_is_that_of_the_budget_that_is_used_up_most(self, tenant: str, used: dict[str, float], home: bool) -> None:
        decision = decided(spec(tenant=tenant), self.CATALOG, replace(world(), budgets=used))
        assert (plan(decision) == ["cpu-1"]) is home

    def test_shares_are_of_the_windows_of_now(self) -> None:
        assert budgets.windows(self.CATALOG, NOW_MS) == [("acme", "2026-03"), ("all", "2026-03")]
        assert budgets.used(self.CATALOG, [5 * NANO, 0]) == {"acme": 0.5, "all": 0.0}
        assert reads_budgets(self.CATALOG, policy_hash(self.CATALOG))
        plain = catalog({"when": "stream", "require": {"tier": "cpu"}})
        assert not reads_budgets(plain, policy_hash(plain))
