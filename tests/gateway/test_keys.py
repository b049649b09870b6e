"""``/v1/keys``, and what the gateway writes into the audit trail."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from fabric.contracts.key import Permissions, Scope, new_key, well_formed
from fabric.contracts.secret import Secrets
from fabric.gateway import GatewaySettings
from fabric.ledger import Ledger, audit, keys
from fabric.ledger.keys import NewKey

if TYPE_CHECKING:
    from tests.gateway.conftest import Served, Worker

SECRETS = Secrets(["s" * 32])
CHAT = {"model": "small", "messages": [{"role": "user", "content": "hi"}]}


class Office:
    """A gateway with keys, an administrator, and whoever else is let in."""

    def __init__(self, gateway: Served, ledger: Ledger) -> None:
        self.gateway = gateway
        self.ledger = ledger
        self.clients: list[httpx.Client] = []
        self.admin_id, key = self.key(("admin",))
        self.admin = self.http(key)

    def key(self, scopes: tuple[Scope, ...], **values: Any) -> tuple[str, str]:
        new = NewKey(tenant="acme", scopes=scopes, created_ms=1, created_by="cli", **values)
        made, key = self.ledger.write(keys.create, SECRETS, new)
        return made.id, key

    def http(self, key: str) -> httpx.Client:
        self.clients.append(self.gateway.http(headers={"authorization": f"Bearer {key}"}))
        return self.clients[-1]

    def trail(self) -> list[dict[str, Any]]:
        self.gateway.inside.trail.flush()
        with self.ledger.reading() as connection:
            assert audit.verify(connection, SECRETS).whole
            return [row.object() for row in audit.rows(connection)]

    def told(self, action: str) -> list[dict[str, Any]]:
        return [row for row in self.trail() if row["action"] == action]


@pytest.fixture
def office(settings: GatewaySettings, serve: Callable[..., Served]) -> Iterator[Office]:
    ledger = Ledger(settings.database_url, wait_s=20)
    office = Office(serve(replace(settings, secrets=SECRETS)), ledger)
    yield office
    for client in office.clients:
        client.close()
    ledger.close()


def refused(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    return error


def test_a_key_is_made_shown_once_and_used(office: Office) -> None:
    asked = {
        "tenant": "other",
        "name": "nightly",
        "scopes": ["read", "inference", "read"],
        "models": ["small"],
        "tiers": ["cpu", "gpu"],
        "regions": ["eu"],
        "privacy_floor": "confidential",
        "expires_in_s": 3_600,
    }
    answer = office.admin.post("/v1/keys", json=asked)
    assert (answer.status_code, answer.headers["cache-control"]) == (201, "no-store")
    made = answer.json()
    key = made.pop("key")
    assert well_formed(key) and key.startswith(made["prefix"])
    assert made["scopes"] == ["read", "inference"] and made["expires_at"] - made["created_at"] == 3_600
    assert {name: made[name] for name in ("tenant", "name", "models", "tiers", "regions", "privacy_floor")} == {
        name: asked[name] for name in ("tenant", "name", "models", "tiers", "regions", "privacy_floor")
    }
    assert office.http(key).get("/v1/jobs").status_code == 200
    assert office.http(key).get("/v1/keys").status_code == 403
    shown = office.admin.get(f"/v1/keys/{made['id']}").json()
    assert shown | {"first_used_at": None} == made | {"first_used_at": None}
    assert key not in office.admin.get("/v1/keys").text


def test_what_is_left_out_isnt_held_back(office: Office) -> None:
    made = office.admin.post("/v1/keys", json={"tenant": "acme"}).json()
    assert made["scopes"] == ["inference", "batch", "read", "dlq"]
    assert {made[name] for name in ("models", "privacy_floor", "expires_at", "replaces")} == {None}


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"tenant": ""}, "tenant"),
        ({"tenant": "a b"}, "tenant"),
        ({"tenant": "a|b"}, "tenant"),
        ({"tenant": "a" * 129}, "tenant"),
        ({"tenant": "a\nb"}, "tenant"),
        ({"name": "\u0000"}, "name"),
        ({"scopes": []}, "scopes"),
        ({"scopes": ["root"]}, "scopes[0]"),
        ({"tiers": []}, "tiers"),
        ({"tiers": ["moon"]}, "tiers[0]"),
        ({"models": [""]}, "models[0]"),
        ({"regions": ["a b"]}, "regions[0]"),
        ({"privacy_floor": "secret"}, "privacy_floor"),
        ({"expires_in_s": 0}, "expires_in_s"),
        ({"expires_in_s": 1.5}, "expires_in_s"),
        ({"limits": {}}, "limits"),
        ({"requests_per_minute": 0}, "requests_per_minute"),
        ({"batch_tokens": 1.5}, "batch_tokens"),
    ],
)
def test_a_wrong_field_is_named(office: Office, change: dict[str, Any], param: str) -> None:
    assert refused(office.admin.post("/v1/keys", json={"tenant": "acme", **change}), 400)["param"] == param


def test_keys_are_listed_over_all_tenants_and_by_one(office: Office) -> None:
    made = [office.admin.post("/v1/keys", json={"tenant": tenant}).json()["id"] for tenant in ("a", "b", "a")]
    first = office.admin.get("/v1/keys", params={"limit": 2}).json()
    assert [key["id"] for key in first["data"]] == [made[2], made[1]] and first["has_more"]
    rest = office.admin.get("/v1/keys", params={"cursor": first["next_cursor"]}).json()
    assert [key["id"] for key in rest["data"]] == [made[0], office.admin_id] and not rest["has_more"]
    mine = office.admin.get("/v1/keys", params={"tenant": "a"}).json()["data"]
    assert [key["id"] for key in mine] == [made[2], made[0]]
    for wrong in ({"cursor": "x"}, {"cursor": "key_" + "0" * 26}, {"limit": 0}, {"other": 1}):
        refused(office.admin.get("/v1/keys", params=wrong), 400)


def test_a_revoked_key_is_refused_by_every_gateway(
    office: Office, settings: GatewaySettings, serve: Callable[..., Served]
) -> None:
    """Within two seconds, on an idle machine; here it counts that it comes about."""
    key_id, key = office.key(("read",))
    with serve(replace(settings, secrets=SECRETS)).http(headers={"authorization": f"Bearer {key}"}) as elsewhere:
        assert elsewhere.get("/v1/jobs").status_code == office.http(key).get("/v1/jobs").status_code == 200
        revoked = office.admin.delete(f"/v1/keys/{key_id}").json()
        assert revoked["state"] == "revoked" and revoked["revoked_at"]
        for http in (elsewhere, office.http(key)):
            until = time.monotonic() + 60
            while http.get("/v1/jobs").status_code == 200:
                assert time.monotonic() < until
                time.sleep(0.02)
            assert refused(http.get("/v1/jobs"), 401)["code"] == "invalid_api_key"
            assert refused(http.post("/v1/chat/completions", json=CHAT), 401)["code"] == "invalid_api_key"
    assert office.admin.delete(f"/v1/keys/{key_id}").json() == revoked


def test_rotation(office: Office) -> None:
    key_id, old = office.key(("read",), permissions=Permissions(tiers=("cpu",)))
    answer = office.admin.post(f"/v1/keys/{key_id}/rotate", json={"overlap_s": 3_600})
    assert answer.status_code == 201
    made = answer.json()
    assert (made["replaces"], made["tiers"], made["scopes"]) == (key_id, ["cpu"], ["read"])
    for key in (old, made["key"]):
        assert office.http(key).get("/v1/jobs").status_code == 200
    office.admin.delete(f"/v1/keys/{key_id}")
    assert refused(office.admin.post(f"/v1/keys/{key_id}/rotate", json={}), 409)["code"] == "conflict"
    refused(office.admin.post(f"/v1/keys/{made['id']}/rotate", json={"overlap_s": -1}), 400)


@pytest.mark.parametrize("key_id", ["key_" + "0" * 26, "nothing", "%00", "key_" + "A" * 26])
def test_a_key_that_isnt_there(office: Office, key_id: str) -> None:
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/rotate")):
        assert refused(office.admin.request(method, f"/v1/keys/{key_id}{path}", json={}), 404)["code"] == "not_found"


class TestTrail:
    def test_keys(self, office: Office) -> None:
        made = office.admin.post("/v1/keys", json={"tenant": "other", "privacy_floor": "restricted"}).json()
        office.http(made["key"]).get("/v1/jobs")
        office.admin.post(f"/v1/keys/{made['id']}/rotate", json={})
        office.admin.delete(f"/v1/keys/{made['id']}")
        (created,) = [row for row in office.told("key.created") if row["subject"] == made["id"]]
        assert (created["actor"], created["tenant"]) == (office.admin_id, "other")
        assert created["detail"]["permissions"] == {"privacy_floor": "restricted"}
        assert {row["subject"] for row in office.told("key.first_used")} == {office.admin_id, made["id"]}
        assert [row["detail"]["replaces"] for row in office.told("key.rotated")] == [made["id"]]

    def test_labels_that_a_floor_raises(self, office: Office, worker: Worker) -> None:
        key_id, key = office.key(("inference",), permissions=Permissions(privacy_floor="restricted"))
        http = office.http(key)
        for _ in range(3):
            assert http.post("/v1/chat/completions", json=CHAT).status_code == 200
        http.post("/v1/chat/completions", json={**CHAT, "fabric": {"privacy": "restricted"}})
        http.post(
            "/v1/jobs", json={"endpoint": "/v1/chat/completions", "body": {**CHAT, "fabric": {"privacy": "public"}}}
        )
        rows = office.told("label.raised")
        told = {(row["actor"], row["detail"]["from"], row["detail"]["to"]) for row in rows}
        assert told == {(key_id, "internal", "restricted"), (key_id, "public", "restricted")}
        assert sum(row["count"] for row in rows) == 4

    def test_models_that_a_key_doesnt_permit(self, office: Office) -> None:
        key_id, key = office.key(("inference",), permissions=Permissions(models=("small",)))
        http = office.http(key)
        for model in ("org/large", "org/large", "nothing"):
            assert http.post("/v1/chat/completions", json={**CHAT, "model": model}).status_code == 404
        (row,) = office.told("request.blocked")
        assert (row["actor"], row["count"]) == (key_id, 2)
        assert row["detail"] == {"model": "org/large", "reason": "permission"}

    def test_dead_letters(self, office: Office, by_hand: Worker, eventually: Any) -> None:
        key_id, key = office.key(("inference", "dlq"))
        http = office.http(key)
        job = http.post("/v1/jobs", json={"endpoint": "/v1/chat/completions", "body": CHAT}).json()["id"]
        for path, method in (("/replay", "POST"), ("", "DELETE")):
            by_hand.next().park()
            eventually(lambda: http.get(f"/v1/jobs/{job}").json()["state"] == "dead")
            assert http.request(method, f"/v1/dead-letters/{job}{path}").status_code == 200
        rows = office.told("dead_letter.replayed") + office.told("dead_letter.dropped")
        assert [(row["actor"], row["subject"], row["tenant"]) for row in rows] == [(key_id, job, "acme")] * 2


def test_keys_are_in_no_log_error_or_metric(
    office: Office, by_hand: Worker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Canaries through every way that a request can end."""
    caplog.set_level(logging.DEBUG)
    # The test's own client is in this process, too; and `fabric api` has no access log.
    for library in ("httpx", "httpcore", "uvicorn"):
        caplog.set_level(logging.WARNING, library)
    _, key = office.key(("inference", "read"))
    stranger, malformed = new_key(), "fab_" + "canary" * 8
    seen: list[str] = []
    for canary in (key, stranger, malformed, f"{key}x"):
        http = office.http(canary)
        for method, path, body in (
            ("GET", "/v1/jobs", None),
            ("GET", "/v1/keys", None),
            ("GET", f"/v1/jobs/{canary}", None),
            ("DELETE", f"/v1/keys/{canary}", None),
            ("GET", f"/{canary}", None),
            ("POST", "/v1/jobs", {"endpoint": "/v1/chat/completions", "body": {"model": "nothing"}}),
            ("POST", "/v1/chat/completions", {**CHAT, "fabric": {"policy": "none"}}),
        ):
            answer = http.request(method, path, json=body)
            assert answer.status_code >= 400 or path == "/v1/jobs"
            if canary not in path:
                seen.append(answer.text + str(answer.headers))
    monkeypatch.setattr("fabric.gateway.job_reads.job_page", lambda *_: 1 / 0)
    monkeypatch.setattr("fabric.gateway.jobs.job_page", lambda *_: 1 / 0)
    assert office.http(key).get("/v1/jobs").status_code == 500
    job = office.http(key).post("/v1/jobs", json={"endpoint": "/v1/chat/completions", "body": CHAT})
    running = by_hand.next()
    seen += [job.text, str(running.spec), str(running.claimed.payload), office.admin.get("/metrics").text]
    seen += [str(row) for row in office.trail()]
    everything = "\n".join([*seen, caplog.text, *(str(record.args) for record in caplog.records)])
    assert "ZeroDivisionError" in caplog.text
    for canary in (key, stranger, malformed):
        assert canary[12:] not in everything
