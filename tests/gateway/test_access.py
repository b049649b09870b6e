"""Every route of the served OpenAPI: who may use it, and that another tenant's things aren't there for them.

A route that these tests don't know makes them fail: say in ``access.NEEDS`` who may use it, and here what
it shows of whom.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from fabric.contracts.key import SCOPES, Permissions, Scope
from fabric.contracts.secret import Secrets
from fabric.gateway import GatewaySettings
from fabric.gateway.access import NEEDS
from fabric.ledger import Ledger, keys
from fabric.ledger.keys import NewKey

if TYPE_CHECKING:
    from tests.gateway.conftest import Served, Worker

SECRETS = Secrets(["s" * 32])
ALL_BUT_ADMIN: tuple[Scope, ...] = ("inference", "batch", "read", "dlq")
OPEN = {("get", "/health/live"), ("get", "/health/ready")}
CHAT = {"model": "small", "messages": [{"role": "user", "content": "hi"}]}
JOB = {"endpoint": "/v1/chat/completions", "body": CHAT}
LINE = b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{"model":"small","messages":[]}}\n'

#: Routes without an id, and what each is sent. Lists are looked through for the other tenant's ids.
PLAIN: dict[tuple[str, str], dict[str, Any]] = {
    ("post", "/v1/chat/completions"): {"json": CHAT},
    ("post", "/v1/completions"): {"json": {"model": "small", "prompt": "hi"}},
    ("post", "/v1/embeddings"): {"json": {"model": "small", "input": "hi"}},
    ("post", "/v1/jobs"): {"json": JOB},
    ("post", "/v1/route"): {"json": JOB},
    ("post", "/v1/files"): {"files": {"file": ("in.jsonl", LINE)}, "data": {"purpose": "batch"}},
    ("get", "/v1/jobs"): {},
    ("get", "/v1/files"): {},
    ("get", "/v1/batches"): {},
    ("get", "/v1/dead-letters"): {},
    ("get", "/v1/models"): {},
    ("get", "/v1/tiers"): {},
    ("get", "/v1/workers"): {},
    ("get", "/v1/usage"): {},
    ("get", "/v1/budgets"): {},
    ("get", "/v1/costs"): {},
    ("get", "/v1/costs/summary"): {},
    ("get", "/metrics"): {},
}
#: Routes that name a thing of a tenant in their body.
NAMING = {("post", "/v1/batches")}
#: Routes that show what belongs to no tenant.
SHARED = {("get", "/v1/models/{model_id}"), ("get", "/v1/policies/{policy_hash}")}
#: Documented: whoever has the scope ``admin`` manages every tenant's keys and webhooks.
ACROSS = {
    ("get", "/v1/keys"),
    ("post", "/v1/keys"),
    ("get", "/v1/keys/{key_id}"),
    ("delete", "/v1/keys/{key_id}"),
    ("post", "/v1/keys/{key_id}/rotate"),
    ("get", "/v1/webhook-deliveries"),
    ("post", "/v1/webhook-deliveries/{delivery_id}/replay"),
}


@dataclass
class House:
    """A gateway with keys."""

    gateway: Served
    ledger: Ledger
    clients: list[httpx.Client] = field(default_factory=list)

    def key(self, tenant: str, scopes: tuple[Scope, ...] = ALL_BUT_ADMIN, **values: Any) -> str:
        new = NewKey(tenant=tenant, scopes=scopes, created_ms=1, created_by="cli", **values)
        _, key = self.ledger.write(keys.create, SECRETS, new)
        return key

    def http(self, key: str | None) -> httpx.Client:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        self.clients.append(self.gateway.http(headers=headers))
        return self.clients[-1]

    def routes(self) -> list[tuple[str, str]]:
        paths = self.http(self.key("docs")).get("/openapi.json").json()["paths"]
        return [(method, path) for path, methods in paths.items() for method in methods]


@pytest.fixture
def house(settings: GatewaySettings, serve: Callable[..., Served]) -> Iterator[House]:
    ledger = Ledger(settings.database_url)
    new = NewKey(tenant="first", scopes=("read",), created_ms=1, created_by="cli")
    ledger.write(keys.create, SECRETS, new)  # closes it
    house = House(serve(replace(settings, secrets=SECRETS)), ledger)
    yield house
    for client in house.clients:
        client.close()
    house.ledger.close()


def belongings(http: httpx.Client, by_hand: Worker, until: Callable[[Callable[[], Any]], Any]) -> dict[str, str]:
    """One thing of each kind: a job, a parked job, a file, a batch."""
    job = http.post("/v1/jobs", json=JOB).json()["id"]
    by_hand.next().succeed()
    parked = http.post("/v1/jobs", json=JOB).json()["id"]
    by_hand.next().park()
    until(lambda: http.get(f"/v1/jobs/{parked}").json()["state"] == "dead")
    file = http.post("/v1/files", **PLAIN["post", "/v1/files"]).json()["id"]
    asked = {"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    batch = http.post("/v1/batches", json=asked).json()["id"]
    return {"job_id": job, "parked_id": parked, "file_id": file, "batch_id": batch}


def filled(path: str, things: dict[str, str]) -> str | None:
    """The path with ids of these things; ``None`` where it has none. Fails on a kind that isn't known here."""
    names = re.findall(r"\{(\w+)[^}]*\}", path)
    if not names:
        return None
    assert len(names) == 1 and names[0] in things, f"a new kind of id: {path}"
    name = "parked_id" if "dead-letters" in path else names[0]
    return re.sub(r"\{[^}]*\}", things[name], path)


def test_another_tenants_things_arent_there(house: House, by_hand: Worker, eventually: Any) -> None:
    mine, theirs = house.http(house.key("mine")), house.http(house.key("theirs"))
    admin = house.http(house.key("theirs", ("admin",)))
    things = belongings(mine, by_hand, eventually)
    by_hand.act = lambda job: job.succeed()
    tried = 0
    for method, path in house.routes():
        if (method, path) in OPEN | SHARED | ACROSS | NAMING:
            continue
        url = filled(path, things)
        if url is None:
            assert (method, path) in PLAIN, f"a new route: {method} {path}"
            continue
        for stranger in (theirs, admin):
            answer = stranger.request(method, url, json={})
            assert answer.status_code == 404, f"{method} {path}: {answer.status_code} {answer.text}"
            unknown = re.sub(r"[0-9a-z]{26}", "0" * 26, url)
            nobody = stranger.request(method, unknown, json={})
            shape = [re.sub(r"[0-9a-z]{26}", "ID", one.text) for one in (answer, nobody)]
            assert shape[0] == shape[1], f"{method} {path} tells what exists from what doesn't"
            tried += 1
    assert tried >= 2 * 12
    asked = {"input_file_id": things["file_id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    assert theirs.post("/v1/batches", json=asked).json()["error"]["code"] == "file_not_found"
    # Nothing was changed by trying.
    assert mine.get(f"/v1/jobs/{things['parked_id']}").json()["state"] == "dead"
    assert mine.get(f"/v1/batches/{things['batch_id']}").json()["status"] == "validating"
    assert mine.get(f"/v1/files/{things['file_id']}/content").content == LINE


def test_lists_show_only_ones_own(house: House, by_hand: Worker, eventually: Any) -> None:
    mine, theirs = house.http(house.key("mine")), house.http(house.key("theirs"))
    things = belongings(mine, by_hand, eventually)
    for method, path in house.routes():
        if method != "get" or (method, path) in OPEN | ACROSS | SHARED or "{" in path:
            continue
        answer = theirs.get(path)
        assert answer.status_code == 200, f"{path}: {answer.text}"
        assert not [thing for thing in things.values() if thing in answer.text], path
    for kind, path in (
        ("job_id", "jobs"),
        ("parked_id", "dead-letters"),
        ("file_id", "files"),
        ("batch_id", "batches"),
    ):
        assert things[kind] in mine.get(f"/v1/{path}").text
        # Ids and cursors of one tenant lead another nowhere.
        if path in ("files", "batches"):
            assert theirs.get(f"/v1/{path}", params={"after": things[kind]}).status_code == 400


def test_an_idempotency_key_is_a_tenants_own(house: House, by_hand: Worker) -> None:
    mine, theirs = house.http(house.key("mine")), house.http(house.key("theirs"))
    headers = {"idempotency-key": "once"}
    jobs = [http.post("/v1/jobs", json=JOB, headers=headers).json()["id"] for http in (mine, theirs, mine)]
    assert jobs[0] == jobs[2] != jobs[1]
    made = []
    for http in (mine, theirs, mine):
        file = http.post("/v1/files", **PLAIN["post", "/v1/files"]).json()["id"] if len(made) < 2 else made[0][0]
        asked = {"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        made.append((file, http.post("/v1/batches", json=asked, headers=headers).json()["id"]))
    assert made[0] == made[2] and made[0][1] != made[1][1]


def test_every_route_says_who_may_use_it(house: House) -> None:
    """A route that isn't in the table is for administrators alone: that must be meant."""
    for method, path in house.routes():
        known = (method.upper(), path.replace("{model_id}", "{model_id:path}"))
        assert (method, path) in OPEN or known in NEEDS, f"who may use {method} {path}?"


def test_without_a_key_nothing_but_health_is_answered(house: House) -> None:
    nobody = house.http(None)
    for method, path in house.routes():
        if (method, path) in OPEN:
            assert nobody.request(method, path).status_code == 200
            continue
        answer = nobody.request(method, re.sub(r"\{[^}]*\}", "x", path))
        assert answer.status_code == 401, f"{method} {path}"
        assert answer.headers["www-authenticate"] == 'Bearer realm="fabric"'
        error = answer.json()["error"]
        assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
    for path in ("/docs", "/openapi.json", "/no/such/route", "/"):
        assert nobody.get(path).status_code == 401
    assert nobody.put("/v1/jobs").status_code == 401


def test_each_scope_leads_where_it_should_and_nowhere_else(house: House, worker: Worker) -> None:
    by_scope = {scope: house.http(house.key("mine", (scope,))) for scope in SCOPES}
    things = {
        name: f"{kind}_{'0' * 26}"
        for name, kind in (
            ("job_id", "job"),
            ("parked_id", "job"),
            ("file_id", "file"),
            ("batch_id", "batch"),
            ("key_id", "key"),
        )
    }
    things |= {"model_id": "small", "policy_hash": "0" * 16, "delivery_id": "ops:evt_0"}
    for method, path in house.routes():
        if (method, path) in OPEN:
            continue
        may = NEEDS[method.upper(), path.replace("{model_id}", "{model_id:path}")]
        sent = PLAIN.get((method, path)) or {"json": {}}
        for scope, http in by_scope.items():
            answer = http.request(method, filled(path, things) or path, **sent)
            if scope == "admin" or scope in may:
                assert answer.status_code not in (401, 403), f"{scope}: {method} {path}: {answer.text}"
            else:
                assert answer.status_code == 403, f"{scope}: {method} {path}: {answer.status_code}"
                assert answer.json()["error"]["code"] == "insufficient_scope"
                assert answer.json()["error"]["type"] == "permission_error"


def test_a_few_that_matter() -> None:
    """The table against sentences of the documentation, so that a slip in it is seen."""
    assert NEEDS["POST", "/v1/chat/completions"] == {"inference"}
    assert NEEDS["POST", "/v1/batches"] == {"batch"}
    assert NEEDS["POST", "/v1/dead-letters/{job_id}/replay"] == {"dlq"}
    assert NEEDS["GET", "/v1/usage"] == {"read"}
    assert NEEDS["POST", "/v1/keys"] == frozenset()


class TestPermissions:
    def test_models_that_arent_permitted_dont_exist(self, house: House, worker: Worker) -> None:
        http = house.http(house.key("mine", permissions=Permissions(models=("small",))))
        assert [model["id"] for model in http.get("/v1/models").json()["data"]] == ["small"]
        assert http.get("/v1/models/small").status_code == 200
        for body in ({**CHAT, "model": "org/large"}, {**CHAT, "model": "nothing"}):
            answers = [
                http.post("/v1/chat/completions", json=body),
                http.post("/v1/jobs", json={**JOB, "body": body}),
                http.post("/v1/route", json=body),
            ]
            assert {answer.status_code for answer in answers} == {404}
            assert {answer.json()["error"]["code"] for answer in answers} == {"model_not_found"}
        assert http.get("/v1/models/org/large").status_code == 404
        assert http.post("/v1/chat/completions", json=CHAT).status_code == 200

    def test_the_floor_raises_and_never_lowers(self, house: House, by_hand: Worker) -> None:
        http = house.http(house.key("mine", permissions=Permissions(privacy_floor="confidential")))
        for asked, got in (
            (None, "confidential"),
            ("public", "confidential"),
            ("confidential", "confidential"),
            ("restricted", "restricted"),
        ):
            body = CHAT if asked is None else {**CHAT, "fabric": {"privacy": asked}}
            job = http.post("/v1/jobs", json={**JOB, "body": body}).json()
            assert job["privacy"] == got
            by_hand.next().succeed()

    def test_tiers_and_regions_travel_with_the_job(self, house: House, by_hand: Worker) -> None:
        narrow = Permissions(tiers=("gpu",), regions=("eu",))
        http = house.http(house.key("mine", permissions=narrow))
        http.post("/v1/jobs", json=JOB)
        spec = by_hand.next().spec
        assert (spec.allowed_tiers, spec.allowed_regions) == (("gpu",), ("eu",))
        route = http.post("/v1/route", json=JOB).json()
        assert route["chosen"] is None
        (out,) = route["decision"]["eliminated"]
        assert (out["reason"], out["detail"]) == ("permission", "the key permits gpu, not cpu")
        assert route["error"]["code"] == "no_eligible_deployment"

    def test_replay_keeps_what_the_key_permitted(self, house: House, by_hand: Worker, eventually: Any) -> None:
        """Also when somebody with a wider key of the same tenant asks for it."""
        narrow = Permissions(tiers=("cpu",), privacy_floor="restricted")
        job = house.http(house.key("mine", permissions=narrow)).post("/v1/jobs", json=JOB).json()["id"]
        by_hand.next().park()
        wide = house.http(house.key("mine"))
        eventually(lambda: wide.get(f"/v1/jobs/{job}").json()["state"] == "dead")
        assert wide.post(f"/v1/dead-letters/{job}/replay").status_code == 200
        again = by_hand.next().spec
        assert (again.id, again.allowed_tiers, again.privacy) == (job, ("cpu",), "restricted")


def test_open_on_loopback_until_the_first_key(settings: GatewaySettings, serve: Callable[..., Served]) -> None:
    gateway = serve(replace(settings, secrets=SECRETS))
    with gateway.http() as http:
        assert http.get("/v1/jobs", headers={"authorization": "Bearer anything"}).status_code == 200
        refused = http.post("/v1/keys", json={"tenant": "mine"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "no_keys_yet")
        new = NewKey(tenant="mine", scopes=("read",), created_ms=1, created_by="cli")
        _, key = gateway.ledger.write(keys.create, SECRETS, new)
        until = time.monotonic() + 60
        while http.get("/v1/jobs").status_code != 401:
            assert time.monotonic() < until
        assert http.get("/v1/jobs", headers={"authorization": f"Bearer {key}"}).status_code == 200
