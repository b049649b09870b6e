"""``/v1/batches``: asked for, shown and stopped. Their lines are the batch service's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import openai
import pytest

from fabric.batches import wake
from fabric.contracts.ids import new_id
from fabric.ledger import batches, files
from fabric.ledger.batches import NewBatch
from fabric.ledger.files import File
from fabric.store import Store

if TYPE_CHECKING:
    import httpx

    from fabric.gateway import GatewaySettings
    from tests.conftest import Valkey
    from tests.gateway.conftest import Served

CHAT = "/v1/chat/completions"
LINE = b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{}}\n'
KEY = {"idempotency-key": "one"}


@pytest.fixture
def file_id(http: httpx.Client) -> str:
    form: dict[str, Any] = {"files": {"file": ("in.jsonl", LINE * 3)}, "data": {"purpose": "batch"}}
    return str(http.post("/v1/files", **form).json()["id"])


def asked(file_id: str, **fields: Any) -> dict[str, Any]:
    return {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h", **fields}


class TestCreate:
    def test_with_the_sdk(self, client: openai.OpenAI, file_id: str, gateway: Served) -> None:
        batch = client.batches.create(**asked(file_id, metadata={"team": "x"}))
        assert (batch.object, batch.status, batch.endpoint, batch.input_file_id) == (
            "batch",
            "validating",
            CHAT,
            file_id,
        )
        assert (batch.completion_window, batch.metadata, batch.errors) == ("24h", {"team": "x"}, None)
        assert batch.expires_at == batch.created_at + 86_400
        assert client.batches.retrieve(batch.id) == batch
        kept = gateway.ledger.read(batches.find, batch.id)
        assert kept is not None
        assert (kept.tenant, kept.status) == ("default", "validating")

    def test_with_a_deadline_and_a_cap_it_is_to_be_planned(
        self, client: openai.OpenAI, http: httpx.Client, file_id: str, gateway: Served
    ) -> None:
        limits = {"deadline_s": 600, "max_cost_usd": 2.5}
        batch = client.batches.create(**asked(file_id), extra_body={"fabric": limits})
        assert batch.expires_at is not None
        assert batch.expires_at - batch.created_at in (600, 601)
        shown = http.get(f"/v1/batches/{batch.id}").json()
        assert shown["fabric"] == {**limits, "plan": None}
        kept = gateway.ledger.read(batches.get, "default", batch.id)
        assert kept.planned
        gateway.ledger.write(batches.keep_plan, batch.id, b'{"state": "on_course"}')
        assert http.get(f"/v1/batches/{batch.id}").json()["fabric"]["plan"] == {"state": "on_course"}

    def test_a_deadline_behind_the_window_changes_nothing(self, http: httpx.Client, file_id: str) -> None:
        made = http.post("/v1/batches", json=asked(file_id) | {"fabric": {"deadline_s": 172_800}}).json()
        assert made["expires_at"] == made["created_at"] + 86_400

    def test_without_limits_it_is_as_any(self, http: httpx.Client, file_id: str) -> None:
        assert "fabric" not in http.post("/v1/batches", json=asked(file_id) | {"fabric": {}}).json()

    def test_the_batch_service_is_woken(self, http: httpx.Client, file_id: str, store: Store) -> None:
        http.post("/v1/batches", json=asked(file_id))
        assert store(wake.wait(60))

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"input_file_id": "nope"}, "input_file_id"),
            ({"input_file_id": "file_00000000000000000000000000"}, "input_file_id"),
            ({"input_file_id": "\0"}, "input_file_id"),
            ({"endpoint": "/v1/nope"}, "endpoint"),
            ({"completion_window": "soon"}, "completion_window"),
            ({"completion_window": "31d"}, "completion_window"),
            ({"completion_window": 24}, "completion_window"),
            ({"metadata": {"a": 1}}, "metadata.a"),
            ({"metadata": {"a": "x" * 513}}, "metadata.a"),
            ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
            ({"fabric": {"deadline_s": 0}}, "fabric.deadline_s"),
            ({"fabric": {"max_cost_usd": "1"}}, "fabric.max_cost_usd"),
            ({"fabric": {"policy": "cheapest"}}, "fabric.policy"),
            ({"output_expires_after": {"anchor": "created_at", "seconds": 3600}}, "output_expires_after"),
        ],
    )
    def test_a_wrong_field_is_named(self, http: httpx.Client, file_id: str, fields: dict[str, Any], param: str) -> None:
        refused = http.post("/v1/batches", json=asked(file_id) | fields)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
        assert http.get("/v1/batches").json()["data"] == []

    @pytest.mark.parametrize("missing", ["input_file_id", "endpoint", "completion_window"])
    def test_a_missing_field_is_named(self, http: httpx.Client, file_id: str, missing: str) -> None:
        body = {name: value for name, value in asked(file_id).items() if name != missing}
        assert http.post("/v1/batches", json=body).json()["error"]["param"] == missing

    def test_an_output_file_is_no_input(self, client: openai.OpenAI, gateway: Served) -> None:
        output = File(new_id("file"), "default", "batch_output", "x", 1, 1, "x", 1)
        gateway.ledger.write(files.create, output)
        with pytest.raises(openai.BadRequestError):
            client.batches.create(**asked(output.id))

    def test_a_file_with_too_many_lines(
        self, settings: GatewaySettings, serve: Callable[[GatewaySettings], Served]
    ) -> None:
        gateway = serve(replace(settings, line_limit=3))
        long = File(new_id("file"), "default", "batch", "x", 1, 4, "x", 1)
        gateway.ledger.write(files.create, long)
        with gateway.http() as http:
            refused = http.post("/v1/batches", json=asked(long.id))
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "input_file_id")

    def test_a_store_that_is_away_only_delays_it(
        self, http: httpx.Client, file_id: str, valkey: Valkey, gateway: Served
    ) -> None:
        valkey.kill()
        try:
            created = http.post("/v1/batches", json=asked(file_id))
        finally:
            valkey.start()
        assert created.status_code == 200
        assert http.get(f"/v1/batches/{created.json()['id']}").json() == created.json()


class TestIdempotency:
    def test_the_same_request_is_the_same_batch(self, http: httpx.Client, file_id: str) -> None:
        first, second = (http.post("/v1/batches", json=asked(file_id), headers=KEY) for _ in range(2))
        assert first.json() == second.json()
        assert len(http.get("/v1/batches").json()["data"]) == 1

    def test_another_request_is_a_conflict(self, http: httpx.Client, file_id: str) -> None:
        http.post("/v1/batches", json=asked(file_id), headers=KEY)
        refused = http.post("/v1/batches", json=asked(file_id, completion_window="1h"), headers=KEY)
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "idempotency_conflict")


class TestCancel:
    def test_it_is_asked_for(self, client: openai.OpenAI, file_id: str, store: Store) -> None:
        batch = client.batches.create(**asked(file_id))
        store(wake.clear())
        cancelled = client.batches.cancel(batch.id)
        assert (cancelled.status, cancelled.id) == ("cancelling", batch.id)
        assert store(wake.wait(60))
        assert client.batches.cancel(batch.id).status == "cancelling"

    def test_not_when_it_has_ended(self, client: openai.OpenAI, file_id: str, gateway: Served) -> None:
        batch = client.batches.create(**asked(file_id))
        gateway.ledger.write(batches.advance, batch.id, "validating", "completed")
        with pytest.raises(openai.ConflictError):
            client.batches.cancel(batch.id)


class TestLooks:
    def test_lists_go_on_behind_the_last(self, client: openai.OpenAI, file_id: str) -> None:
        created = {client.batches.create(**asked(file_id)).id for _ in range(5)}
        listed = [batch.id for batch in client.batches.list(limit=2)]
        assert len(listed) == 5
        assert set(listed) == created
        page = client.batches.list(limit=2)
        assert page.has_more
        assert [batch.id for batch in page.data] == listed[:2]

    def test_a_report_of_what_has_ended(self, http: httpx.Client, file_id: str) -> None:
        batch_id = http.post("/v1/batches", json=asked(file_id)).json()["id"]
        report = http.get(f"/v1/batches/{batch_id}/report").json()
        assert (report["batch_id"], report["places"], report["cost_usd"]) == (batch_id, [], 0)

    @pytest.mark.parametrize(
        ("query", "param"),
        [("limit=101", "limit"), ("after=nope", "after"), ("after=batch_" + "0" * 26, "after"), ("x=1", "x")],
    )
    def test_wrong_parameters_are_named(self, http: httpx.Client, query: str, param: str) -> None:
        refused = http.get(f"/v1/batches?{query}")
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)

    @pytest.mark.parametrize("batch_id", ["nope", "batch_00000000000000000000000000", "%00"])
    def test_unknown_batches(self, http: httpx.Client, batch_id: str) -> None:
        assert http.get(f"/v1/batches/{batch_id}").status_code == 404
        assert http.get(f"/v1/batches/{batch_id}/report").status_code == 404
        assert http.post(f"/v1/batches/{batch_id}/cancel").status_code == 404

    def test_another_tenants_batch_is_unknown(self, http: httpx.Client, gateway: Served) -> None:
        new = NewBatch(new_id("batch"), "other", None, CHAT, "file_x", "24h", None, 1, 2)
        gateway.ledger.write(batches.create, new)
        assert http.get(f"/v1/batches/{new.id}").status_code == 404
        assert http.get(f"/v1/batches/{new.id}/report").status_code == 404
        assert http.post(f"/v1/batches/{new.id}/cancel").status_code == 404
        assert http.get("/v1/batches").json()["data"] == []
