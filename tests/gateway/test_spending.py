"""``/v1/usage`` and ``/v1/costs``: rows of the ledger's sums, own ones only, every parameter honoured or refused."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from fabric.contracts.catalog import Baseline, Price
from fabric.contracts.completion import Completion
from fabric.contracts.errors import InvalidRequest, PermissionDenied
from fabric.contracts.job import JobSpec, Measures, Usage
from fabric.gateway.caller import Caller
from fabric.gateway.spending import SpanQuery, moment_ms, wanted
from fabric.ledger import usage, worker_hours
from fabric.ledger.usage import Note
from fabric.ledger.worker_hours import Up

if TYPE_CHECKING:
    from fabric.gateway import GatewaySettings
    from tests.gateway.conftest import Served

MONDAY = int(datetime(2026, 11, 2, tzinfo=UTC).timestamp() * 1000)
HOUR_MS = 3_600_000


def completion(job: int, at: int = MONDAY, **spec: Any) -> Completion:
    fixed: dict[str, Any] = {"endpoint": "/v1/chat/completions", "model": "small"}
    return Completion(
        entry_id="1-1",
        spec=JobSpec(id=f"job_{job:026}", **(fixed | spec)),
        state="succeeded",
        attempt=1,
        deployment="small-cpu",
        tier="cpu",
        worker="w",
        accepted_ms=at - 3,
        dispatched_ms=at - 2,
        claimed_ms=at - 1,
        finished_ms=at,
        measures=Measures(engine_s=3.0, usage=Usage(100, 50, 40), cost_usd=0.5, machine_usd=0.25),
        result=None,
        error=None,
    )


@pytest.fixture
def recorded(gateway: Served) -> Served:
    done = [
        completion(1, tags=("a", "b")),
        completion(2, MONDAY + HOUR_MS, tags=("b",), key_id="key_1"),
        completion(3, MONDAY + 30 * HOUR_MS, model="org/large"),
        completion(4, MONDAY, tenant="other"),
    ]
    gateway.ledger.write(usage.add, done, lambda _: Note("hash", 0.4, 2.0, 1.0))
    return gateway


def rows(http: httpx.Client, path: str, **params: Any) -> list[dict[str, Any]]:
    answer = http.get(path, params=params)
    assert answer.status_code == 200, answer.text
    assert set(answer.json()) == {"object", "data", "has_more", "next_cursor"}
    found: list[dict[str, Any]] = answer.json()["data"]
    return found


class TestUsage:
    def test_is_one_row_without_groups(self, recorded: Served, http: httpx.Client) -> None:
        (row,) = rows(http, "/v1/usage", tenant="default")
        assert row["requests"] == row["attempts"] == 3
        assert (row["input_tokens"], row["cached_input_tokens"], row["output_tokens"]) == (300, 120, 150)
        assert (row["cost_usd"], row["cloud_equivalent_usd"]) == (1.5, 6.0)

    def test_whoever_administers_sees_all_tenants(self, recorded: Served, http: httpx.Client) -> None:
        found = rows(http, "/v1/usage", group_by="tenant")
        assert [(row["tenant"], row["requests"]) for row in found] == [("default", 3), ("other", 1)]

    def test_several_groups(self, recorded: Served, http: httpx.Client) -> None:
        found = rows(http, "/v1/usage", tenant="default", group_by=["day,model", "key"])
        assert [(row["day"], row["model"], row["key"], row["requests"]) for row in found] == [
            ("2026-11-02", "small", None, 1),
            ("2026-11-02", "small", "key_1", 1),
            ("2026-11-03", "org/large", None, 1),
        ]
        assert [row["hour"] for row in rows(http, "/v1/usage", group_by="hour", tenant="default")] == [
            "2026-11-02T00:00:00Z",
            "2026-11-02T01:00:00Z",
            "2026-11-03T06:00:00Z",
        ]

    def test_by_tag_and_filters(self, recorded: Served, http: httpx.Client) -> None:
        found = rows(http, "/v1/usage", group_by="tag")
        assert [(row["tag"], row["requests"]) for row in found] == [("a", 1), ("b", 2)]
        for params, count in (
            ({"model": "org/large"}, 1),
            ({"tag": "b", "key": "key_1"}, 1),
            ({"since": "2026-11-03"}, 1),
            ({"until": "2026-11-02T01:00:00Z", "tenant": "default"}, 1),
            ({"since": "2026-11-02T01:00:00+01:00", "until": "2026-11-02T02:00:00+01:00"}, 2),
            ({"tier": "gpu"}, 0),
            ({"endpoint": "/v1/chat/completions", "deployment": "small-cpu", "tenant": "other"}, 1),
        ):
            assert rows(http, "/v1/usage", **params)[0]["requests"] == count, params

    def test_pages(self, recorded: Served, http: httpx.Client) -> None:
        params: dict[str, Any] = {"group_by": "tenant,hour", "limit": 3}
        first = http.get("/v1/usage", params=params).json()
        assert (len(first["data"]), first["has_more"]) == (3, True)
        rest = http.get("/v1/usage", params={**params, "cursor": first["next_cursor"]}).json()
        assert ([row["tenant"] for row in rest["data"]], rest["has_more"]) == (["other"], False)

    @pytest.mark.parametrize(
        ("params", "param"),
        [
            ({"modell": "small"}, "modell"),
            ({"group_by": "model,colour"}, "group_by"),
            ({"since": "yesterday"}, "since"),
            ({"since": "2026-11-02", "until": "2026-11-01"}, "since"),
            ({"tier": "tpu"}, "tier"),
            ({"endpoint": "/v1/nothing"}, "endpoint"),
            ({"limit": "0"}, "limit"),
            ({"cursor": "e30"}, "cursor"),
            ({"cursor": "???", "group_by": "model"}, "cursor"),
            # of a page with other groups
            ({"cursor": "W1sibW9kZWwiXSxbInNtYWxsIl1d", "group_by": "day"}, "cursor"),
            ({"cursor": "W1siZGF5Il0sWyJ4Il1d", "group_by": "day"}, "cursor"),
        ],
    )
    def test_a_wrong_parameter_is_named(self, http: httpx.Client, params: dict[str, str], param: str) -> None:
        for path in ("/v1/usage", "/v1/costs"):
            answer = http.get(path, params=params)
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


class TestWhose:
    def test_without_admin_only_the_own_tenants(self) -> None:
        caller = Caller("acme", "key_1", frozenset({"read"}))
        assert wanted(caller, SpanQuery()).tenant == "acme"
        assert wanted(caller, SpanQuery(tenant="acme")).tenant == "acme"
        with pytest.raises(PermissionDenied):
            wanted(caller, SpanQuery(tenant="other"))
        assert wanted(Caller("acme"), SpanQuery()).tenant is None
        assert wanted(Caller("acme"), SpanQuery(tenant="other")).tenant == "other"


def test_times() -> None:
    now = MONDAY + 5
    assert moment_ms("2026-11-02", "since", now) == MONDAY
    assert moment_ms("2026-11-02T00:00:00Z", "since", now) == MONDAY
    assert moment_ms("2026-11-02T01:00:00 01:00", "since", now) == MONDAY  # a plus sign that wasn't encoded
    assert moment_ms(str(MONDAY // 1000), "since", now) == MONDAY
    assert moment_ms("2d", "since", now) == now - 48 * HOUR_MS
    assert moment_ms(None, "since", now) is None
    for wrong in ("", "2d ago", "-1", "2026-13-01", "1e3"):
        with pytest.raises(InvalidRequest):
            moment_ms(wrong, "since", now)


class TestCosts:
    def test_parts_and_comparisons(self, recorded: Served, http: httpx.Client) -> None:
        (row,) = rows(http, "/v1/costs", tenant="default")
        assert (row["cost_usd"], row["token_usd"], row["machine_usd"]) == (1.5, 0.75, 0.75)
        assert (row["cloud_equivalent_usd"], row["savings_usd"]) == (6.0, 4.5)
        assert (row["baseline_usd"], row["savings_vs_baseline_usd"]) == (3.0, 1.5)
        assert row["cost_per_1000_requests_usd"] == pytest.approx(500)
        assert row["cost_per_million_tokens_usd"] == pytest.approx(1.5 / 450 * 1e6)
        assert row["prediction_error"] == pytest.approx(0.2)

    def test_nothing_costs_nothing(self, http: httpx.Client) -> None:
        (row,) = rows(http, "/v1/costs")
        assert (row["cost_usd"], row["savings_usd"], row["cost_per_1000_requests_usd"]) == (0, 0, None)

    def test_the_summary_has_tiers_with_idle_hours(self, recorded: Served, http: httpx.Client) -> None:
        up = [Up("w", "cpu", 4, MONDAY, 2.0), Up("g", "gpu", 8, MONDAY, 1.0)]
        recorded.ledger.write(worker_hours.note, up, MONDAY + 3 * HOUR_MS)
        found = http.get("/v1/costs/summary").json()
        assert (found["since"], found["until"], found["total"]["requests"]) == (None, None, 4)
        span = {"since": "2026-11-02T00:30:00Z", "until": "2026-11-02T00:31:00Z"}
        found = http.get("/v1/costs/summary", params=span).json()
        assert (found["since"], found["until"]) == ("2026-11-02T00:00:00Z", "2026-11-02T01:00:00Z")
        assert found["total"]["requests"] == 2
        found = http.get("/v1/costs/summary").json()
        cpu, gpu = found["tiers"]
        assert cpu["machines"] == {"workers": 1, "up_s": 10800, "usd": 6.0, "busy_usd": 1.0, "idle_usd": 5.0}
        assert (gpu["tier"], gpu["requests"], gpu["machines"]["idle_usd"]) == ("gpu", 0, 3.0)
        assert found["baseline"] is None
        assert "machines" not in http.get("/v1/costs/summary?tenant=default").json()["tiers"][0]
        assert http.get("/v1/costs/summary?group_by=day").json()["error"]["param"] == "group_by"

    def test_the_month_is_told_ahead(self, gateway: Served, http: httpx.Client) -> None:
        now = int(time.time() * 1000)
        gateway.ledger.write(usage.add, [completion(1, now)])
        month = http.get("/v1/costs/summary").json()["month"]
        assert (month["month"], month["spent_usd"]) == (f"{datetime.now(UTC):%Y-%m}", 0.5)

    def test_the_baseline_is_named(self, settings: GatewaySettings, serve: Callable[..., Served]) -> None:
        baseline = Baseline(model="big", price=Price(input_per_million=3))
        catalog = settings.catalog.model_copy(update={"baseline": baseline})
        with serve(replace(settings, catalog=catalog)).http() as http:
            found = http.get("/v1/costs/summary").json()
        assert (found["baseline"]["model"], found["baseline"]["price"]["input_per_million"]) == ("big", 3)
