"""Rules at the door: what is refused leaves no job, what is let in is as the rule says, shadows answer nobody."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from fabric.contracts.catalog import Catalog
from fabric.store import Store, reads, transitions

if TYPE_CHECKING:
    import httpx

    from fabric.gateway import GatewaySettings
    from fabric.store.transitions import Taken
    from tests.gateway.conftest import Served

CHAT = "/v1/chat/completions"
RULES = (
    {"name": "no trials", "when": 'tenant == "default" && header.x_plan == "trial"', "deny": "Trials are over."},
    {"name": "slow", "when": '"slow" in tags', "set": {"priority": "batch", "deadline_s": 60}},
    {"name": "try", "when": '"try" in tags', "shadow": {"deployment": "small-cloud", "weight": 1}},
)
CATALOG = Catalog.model_validate(
    {
        "models": [
            {
                "name": "small",
                "deployments": [
                    {"engine": "mock", "tier": "cpu", "capabilities": ["chat"]},
                    {"engine": "mock", "tier": "cloud", "capabilities": ["chat"]},
                ],
            }
        ],
        "rules": RULES,
        "rule_headers": ["x-plan"],
    }
)


@pytest.fixture
def ruled(serve: Callable[..., Served], settings: GatewaySettings) -> httpx.Client:
    http: httpx.Client = serve(replace(settings, catalog=CATALOG)).http()
    return http


def job(*tags: str, **options: Any) -> dict[str, Any]:
    body = {"model": "small", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
    return {"endpoint": CHAT, "body": body, "fabric": {"tags": list(tags), **options}}


def waiting(store: Store) -> list[Taken]:
    room = store(transitions.room())
    return store(transitions.take([(lane.name, 64) for lane in room.lanes]))


@pytest.mark.parametrize("path", [CHAT, "/v1/jobs"])
def test_a_denied_request_gets_the_rules_sentence_and_leaves_no_job(
    ruled: httpx.Client, store: Store, path: str
) -> None:
    body = job() if path == "/v1/jobs" else job()["body"]
    answer = ruled.post(path, json=body, headers={"X-Plan": "trial"})
    assert answer.status_code == 403
    error = answer.json()["error"]
    assert (error["code"], error["type"], error["message"]) == ("denied_by_rule", "policy_error", "Trials are over.")
    assert store(reads.live_count()) == 0


def test_headers_that_rules_may_not_read_stay_outside(ruled: httpx.Client, store: Store) -> None:
    assert ruled.post("/v1/jobs", json=job(), headers={"X-Plan": "paid", "X-Other": "secret"}).status_code == 202
    (taken,) = waiting(store)
    assert taken.spec.headers == (("x-plan", "paid"),)


def test_what_a_rule_sets_is_set(ruled: httpx.Client, store: Store) -> None:
    assert ruled.post("/v1/jobs", json=job("slow")).status_code == 202
    (taken,) = waiting(store)
    assert taken.spec.priority == "batch"
    assert taken.spec.deadline_ms is not None
    assert 0 < taken.spec.deadline_ms - taken.now_ms <= 60_000


def test_a_shadow_follows_public_text_and_no_other(
    ruled: httpx.Client, store: Store, eventually: Callable[[Callable[[], Any]], Any]
) -> None:
    labelled = ruled.post("/v1/jobs", json=job("try", privacy="internal")).json()["id"]
    public = ruled.post("/v1/jobs", json=job("try", privacy="public")).json()["id"]
    eventually(lambda: store(reads.live_count()) == 3)
    twins = [taken.spec for taken in waiting(store) if taken.spec.id not in (labelled, public)]
    (twin,) = twins
    assert (twin.shadow_of, twin.deployment, twin.priority, twin.privacy, twin.stream) == (
        *(public, "small-cloud", "batch"),
        *("public", False),
    )


def test_a_resend_of_the_same_key_is_shadowed_once(
    ruled: httpx.Client, store: Store, eventually: Callable[[Callable[[], Any]], Any]
) -> None:
    for _ in range(2):
        answer = ruled.post("/v1/jobs", json=job("try", privacy="public"), headers={"Idempotency-Key": "k"})
        assert answer.status_code == 202
    eventually(lambda: store(reads.live_count()) == 2)
    assert ruled.post("/v1/jobs", json=job()).status_code == 202
    assert store(reads.live_count()) == 3


class TestADryRun:
    def routed(self, ruled: httpx.Client, body: dict[str, Any], **headers: str) -> dict[str, Any]:
        values: dict[str, Any] = ruled.post("/v1/route", json=body, headers=headers).json()
        return values

    def test_says_that_the_request_would_be_refused(self, ruled: httpx.Client) -> None:
        values = self.routed(ruled, job(), **{"X-Plan": "trial"})
        assert values["chosen"] is None
        assert (values["error"]["status"], values["error"]["message"]) == (403, "Trials are over.")
        assert values["decision"]["rule"] == "no trials"
        assert {out["reason"] for out in values["decision"]["eliminated"]} == {"rule"}

    def test_goes_on_when_it_would_not(self, ruled: httpx.Client) -> None:
        assert self.routed(ruled, job())["chosen"]["deployment"] == "small-cpu"
