"""Deliveries of webhooks, as operators see them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import openai
import pytest

from fabric.client import Client
from fabric.contracts.webhook import Event
from fabric.ledger import audit, deliveries
from fabric.ledger.deliveries import Tried

if TYPE_CHECKING:
    import httpx

    from tests.gateway.conftest import Served


@pytest.fixture
def told(gateway: Served) -> list[str]:
    """Five deliveries, the oldest first; the third is parked."""
    ids = []
    for number in range(5):
        event = Event(f"evt_{number}", "job.dead", "t", f"job_{number}", 1_000, {"id": f"job_{number}"})
        gateway.ledger.write(deliveries.add, [("ops" if number % 2 else "other", event)], 1_000 + number // 2)
        ids.append(f"{'ops' if number % 2 else 'other'}:evt_{number}")
    gateway.ledger.write(deliveries.note, [Tried(ids[2], "parked", 410, "it answered 410")], 2_000)
    return ids


def ids(answer: httpx.Response) -> list[str]:
    return [one["id"] for one in answer.json()["data"]]


def test_newest_first_page_by_page(http: httpx.Client, told: list[str]) -> None:
    seen: list[str] = []
    query: dict[str, Any] = {"limit": 2}
    while True:
        answer = http.get("/v1/webhook-deliveries", params=query)
        seen += ids(answer)
        if not answer.json()["has_more"]:
            break
        query["cursor"] = answer.json()["next_cursor"]
    assert len(seen) == 5
    assert set(seen) == set(told)
    assert seen[0] == told[4]
    assert http.get("/v1/webhook-deliveries", params={"cursor": "x"}).status_code == 400


def test_by_state_and_webhook(http: httpx.Client, told: list[str]) -> None:
    (parked,) = http.get("/v1/webhook-deliveries", params={"state": "parked"}).json()["data"]
    assert (parked["id"], parked["last_status"], parked["last_error"]) == (told[2], 410, "it answered 410")
    assert (parked["tries"], parked["next_ms"], parked["ended_ms"]) == (1, None, 2_000)
    assert set(ids(http.get("/v1/webhook-deliveries", params={"webhook": "ops"}))) == {told[1], told[3]}
    assert http.get("/v1/webhook-deliveries", params={"state": "odd"}).status_code == 400


def test_one_is_sent_again(gateway: Served, http: httpx.Client, told: list[str]) -> None:
    with Client(gateway.url) as client:
        again = client.replay_webhook(told[2])
        assert (again["state"], again["tries"], again["event_id"]) == ("waiting", 0, "evt_2")
        assert len(list(client.webhook_deliveries(state="waiting"))) == 5
    assert http.post("/v1/webhook-deliveries/ops:evt_none/replay").status_code == 404


def test_that_is_in_the_audit_trail(gateway: Served, told: list[str], eventually: Any) -> None:
    gateway.http().post(f"/v1/webhook-deliveries/{told[2]}/replay")

    def rows() -> list[str]:
        with gateway.ledger.reading() as connection:
            return [row.subject or "" for row in audit.rows(connection) if row.action == "webhook.replayed"]

    eventually(lambda: rows() == [told[2]])


def test_the_specifications_example_is_signed_as_it_says() -> None:
    """Of standardwebhooks.com: the signature of a known message under a known secret, by another implementation."""
    from fabric.webhooks import signature

    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    body, event_id, at = b'{"test": 2432232314}', "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330
    headers = signature.headers(signature.key_of(secret, "S"), event_id, at, body)
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    openai.OpenAI(api_key="-", webhook_secret=secret).webhooks.verify_signature(body, headers, tolerance=10**9)
