"""The books agree after everything that can happen to a job: hedged, fallen back, expired, cancelled, parked,
replayed, dropped, its stream cut by its reader and by its provider, in a batch of the fabric's and in one of a
provider's. Rows of the ledger, its sums, the metrics, the costs that callers read and the balances of budgets say the
same."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.e2e.conftest import new_fabric, until
from tests.e2e.played import chat, playing, say
from tests.e2e.test_accounts import metrics
from tests.workers.engines.fake_batches import FakeBatches

if TYPE_CHECKING:
    from tests.e2e.conftest import Fabric

CHATS = "/v1/chat/completions"
PATIENCE_S = 120
USAGE = {"prompt_tokens": 30, "completion_tokens": 20, "total_tokens": 50}


def priced(dollars_in: float, dollars_out: float) -> dict[str, Any]:
    """US dollars for a million tokens."""
    return {"price": {"input_per_million": dollars_in, "output_per_million": dollars_out}}


def hosted(name: str, url: str, **more: Any) -> dict[str, Any]:
    patient = {"breaker": {"failures": 99, "minimum": 99}}
    return {"name": name, "engine": "openai", "tier": "cloud", "model": "m", "base_url": url} | patient | more


def mock(name: str, tier: str, options: dict[str, Any], **more: Any) -> dict[str, Any]:
    patient = {"breaker": {"failures": 99, "minimum": 99}}
    return {"name": name, "engine": "mock", "tier": tier, "slots": 4, "options": options} | patient | more


def config(played: str, batches: str) -> str:
    """YAML, as JSON is."""
    at = {name: f"{played}/{name}/v1" for name in ("first", "second", "dear", "cut", "shaky")}
    models = {
        "twice": [
            hosted("first", at["first"], **priced(1, 1)),
            hosted("second", at["second"], **priced(2, 2)),
            hosted("dear", at["dear"], **priced(50, 50)),
        ],
        "moving": [mock("broken", "cpu", {"fail": 1}), mock("net", "cloud", {"tokens": 10}, **priced(0, 20))],
        "local": [mock("local", "cpu", {"latency_ms": 100, "tokens": 10, "fail": 0.1})],
        "long": [mock("long", "cloud", {"latency_ms": 60_000, "tokens": 600}, **priced(5, 20))],
        "cut": [hosted("cut", at["cut"], **priced(3, 9))],
        "shaky": [hosted("shaky", at["shaky"], **priced(3, 9))],
        "patient": [hosted("patient", batches, batch_api={"gather_s": 1, "poll_s": 0.2}, **priced(2, 8))],
    }
    for deployments in models.values():
        for one in deployments:
            if one["engine"] == "openai":
                one["api_key_env"] = "PLAYED_KEY"
    values = {
        "policies": {"twice": {"kind": "cheapest", "hedge": True}},
        "default_policy": "local-first",
        "baseline": {"model": "gpt-5", "provider": "openai"},
        "tiers": {"cpu": {"watts": 100, "usd_per_kwh": 0.5, "usd_per_hour": 3.55}},
        "budgets": [
            {"name": "everything", "usd": 100_000, "window": "total"},
            {"name": "words", "tokens": 1_000_000_000, "window": "total"},
            {"name": "half", "tag": "half", "usd": 100_000, "window": "total"},
            {"name": "told", "usd": 0.000001, "window": "total", "hard": False},
        ],
        "models": [{"name": name, "deployments": deployments} for name, deployments in models.items()],
    }
    return json.dumps(values)


class Provider(ThreadingHTTPServer):
    """Hosted APIs: the first place holds what says "slow", ``cut`` breaks off in the middle of its streams, and
    ``shaky`` fails until it is ``mended``."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.mended = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Provider
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        text, place = body["messages"][0]["content"], self.path.split("/")[1]
        if place == "first" and text == "slow":
            self.rfile.read(1)  # until the connection is closed
        elif place == "cut":
            self._break_off()
        elif place == "shaky" and not self.server.mended.is_set():
            say(self, 500, {"error": {"message": "not today", "type": "server_error"}})
        else:
            say(self, 200, chat(place, USAGE))

    def _break_off(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        for word in ("one", " two", " three"):
            choice = {"index": 0, "delta": {"content": word}, "finish_reason": None}
            self.wfile.write(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n")
        self.wfile.flush()
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture
def provider() -> Iterator[Provider]:
    with playing(Provider()) as server:
        yield server


@pytest.fixture
def batches() -> Iterator[FakeBatches]:
    fake = FakeBatches()
    fake.release.set()
    yield fake
    fake.stop()


@pytest.fixture
def fabric(provider: Provider, batches: FakeBatches) -> Iterator[Fabric]:
    for fabric in new_fabric(PLAYED_KEY="played"):
        yield fabric.start(config(provider.url, batches.url))


def ask(model: str, text: str = "hello", **options: Any) -> dict[str, Any]:
    body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 40}
    return body | {"fabric": {"tags": ["half"], **options}}


class Run:
    """All that is done to a fabric. Each ``_step`` does one thing and waits for its end."""

    def __init__(self, fabric: Fabric, http: httpx.Client, provider: Provider) -> None:
        self.fabric, self.http, self.provider = fabric, http, provider

    def whole(self) -> None:
        # Until its budgets are counted it says 503.
        until(lambda: self.http.post(CHATS, json=ask("local")).status_code == 200, within_s=PATIENCE_S)
        self._hedged()
        for n in range(5):
            assert self._chat(ask("moving", tags=[] if n % 2 else ["half"])).headers["x-fabric-deployment"] == "net"
            assert self._chat(ask("local")).status_code == 200
        self._streams_cut()
        assert self.http.post(CHATS, json=ask("long", deadline_s=1)).status_code in (408, 504)
        self._parked()
        self._batches()

    def _chat(self, body: dict[str, Any]) -> httpx.Response:
        answer = self.http.post(CHATS, json=body)
        assert answer.status_code == 200, answer.text
        return answer

    def _hedged(self) -> None:
        def usual() -> bool:
            job_id = self._chat(ask("twice", "quick", policy="twice")).headers["x-fabric-job-id"]
            plan = self.http.get(f"/v1/jobs/{job_id}").json()["decision"]["plan"]
            return bool(plan[0]["measured"])

        until(usual, within_s=PATIENCE_S)
        assert self._chat(ask("twice", "slow", policy="twice")).headers["x-fabric-deployment"] == "second"

    def _streams_cut(self) -> None:
        with self.http.stream("POST", CHATS, json=ask("long") | {"stream": True}) as answer:  # its reader leaves
            job_id = answer.headers["x-fabric-job-id"]
            lines = answer.iter_lines()
            while "tok" not in next(lines):
                pass
        until(lambda: self._state(job_id) == "cancelled", within_s=PATIENCE_S)
        with self.http.stream("POST", CHATS, json=ask("cut") | {"stream": True}) as answer:  # its provider does
            text = "".join(answer.iter_text())
            assert "three" in text and "[DONE]" not in text

    def _parked(self) -> None:
        """One comes back twice and then succeeds, one is dropped, one stays."""
        back, dropped, _ = (self._submit(ask("shaky", str(n))) for n in range(3))
        until(lambda: self._dead() == 3, within_s=PATIENCE_S)
        for _ in range(2):
            assert self.http.post(f"/v1/dead-letters/{back}/replay").status_code == 200
            until(lambda: self._state(back) == "dead", within_s=PATIENCE_S)
        self.provider.mended.set()
        assert self.http.post(f"/v1/dead-letters/{back}/replay").status_code == 200
        until(lambda: self._state(back) == "succeeded", within_s=PATIENCE_S)
        assert self.http.delete(f"/v1/dead-letters/{dropped}").status_code in (200, 204)

    def _batches(self) -> None:
        assert self._ended(self._batch("local", 30))["status"] == "completed"
        assert self._ended(self._batch("patient", 20, "cheapest"))["request_counts"]["completed"] == 20
        cut = self._batch("local", 200)
        until(lambda: self._found(cut)["request_counts"]["completed"] >= 5, within_s=PATIENCE_S)
        self.http.post(f"/v1/batches/{cut}/cancel")
        assert self._ended(cut)["status"] == "cancelled"
        late = self._batch("long", 12, deadline_s=5)
        assert self._ended(late)["status"] == "expired"
        assert self._ended(self._batch("moving", 12, max_cost_usd=0.01))["status"] == "completed"

    def _batch(self, model: str, count: int, policy: str = "local-first", **options: Any) -> str:
        lines = "".join(
            json.dumps({"custom_id": str(n), "method": "POST", "url": CHATS, "body": ask(model, policy=policy)}) + "\n"
            for n in range(count)
        )
        file = self.http.post("/v1/files", files={"file": ("in.jsonl", lines.encode())}, data={"purpose": "batch"})
        asked: dict[str, Any] = {"input_file_id": file.json()["id"], "endpoint": CHATS, "completion_window": "24h"}
        made = self.http.post("/v1/batches", json=asked | ({"fabric": options} if options else {}))
        assert made.status_code == 200, made.text
        return str(made.json()["id"])

    def _found(self, batch_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.http.get(f"/v1/batches/{batch_id}").json()
        return found

    def _ended(self, batch_id: str) -> dict[str, Any]:
        until(
            lambda: self._found(batch_id)["status"] in ("completed", "cancelled", "expired", "failed"),
            within_s=PATIENCE_S,
            hint=f"for {batch_id}",
        )
        return self._found(batch_id)

    def _submit(self, body: dict[str, Any]) -> str:
        options = body.pop("fabric")
        return str(self.http.post("/v1/jobs", json={"endpoint": CHATS, "body": body, "fabric": options}).json()["id"])

    def _state(self, job_id: str) -> str:
        return str(self.http.get(f"/v1/jobs/{job_id}").json()["state"])

    def _dead(self) -> int:
        return len(self.http.get("/v1/dead-letters").json()["data"])


def table(fabric: Fabric, query: str) -> list[dict[str, Any]]:
    with sqlite3.connect(fabric.data / "ledger.sqlite3") as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(query)]


def by_place(rows: list[dict[str, Any]], column: str) -> dict[tuple[str, str], float]:
    found: Counter[tuple[str, str]] = Counter()
    for row in rows:
        found[row["tier"], row["deployment"]] += row[column]
    return {place: value for place, value in found.items() if value}


def quiet(fabric: Fabric, http: httpx.Client) -> list[dict[str, Any]] | None:
    """The rows, once nothing is reserved any more and the metrics count what the ledger has."""
    balances = http.get("/v1/budgets").json()["data"]
    if any(balance.get("reserved_usd") or balance.get("reserved_tokens") for balance in balances):
        return None
    rows = table(fabric, "SELECT * FROM usage")
    counted = sum(metrics(http, "fabric_attempts_total", "result").values())
    return rows if counted == sum(row["attempt"] > 0 for row in rows) else None


def test_rows_sums_metrics_costs_and_budgets_agree(fabric: Fabric, provider: Provider) -> None:
    with fabric.http() as http:
        Run(fabric, http, provider).whole()
        rows: list[dict[str, Any]] = until(
            lambda: quiet(fabric, http), within_s=PATIENCE_S, hint="until all was settled"
        )
        budgets = {budget["name"]: budget for budget in http.get("/v1/budgets").json()["data"]}

        # It was mixed.
        states = Counter(row["state"] for row in rows)
        assert states.keys() >= {"succeeded", "requeued", "cancelled", "expired", "dead", "failed"}, states
        assert metrics(http, "fabric_hedges_total", "result") == {("begun",): 1, ("won",): 1}
        assert {row["deployment"] for row in rows} >= {
            *("first", "second", "broken", "net", "cut", "shaky", "patient-batch"),
        }

        # A request is one, whatever became of it.
        assert max(Counter(row["job_id"] for row in rows if row["requests"]).values()) == 1

        # Sums, however they are kept.
        for column in ("cost_usd", "machine_usd", "input_tokens", "output_tokens", "requests", "cloud_equivalent_usd"):
            total = pytest.approx(sum(row[column] for row in rows), abs=1e-9)
            for period in ("hour", "day", "brief"):
                kept = f"SELECT SUM({column}) AS total FROM usage_sums WHERE period = '{period}' AND tag = ''"
                assert table(fabric, kept)[0]["total"] == total, (column, period)
        costs = http.get("/v1/costs", params={"group_by": "tier,deployment"}).json()["data"]
        assert {(row["tier"], row["deployment"]): row["cost_usd"] for row in costs if row["cost_usd"]} == {
            place: pytest.approx(usd, abs=1e-9) for place, usd in by_place(rows, "cost_usd").items()
        }

        # Metrics.
        assert metrics(http, "fabric_cost_usd_total", "tier", "deployment") == {
            place: pytest.approx(usd, rel=1e-6) for place, usd in by_place(rows, "cost_usd").items()
        }
        tokens = metrics(http, "fabric_tokens_total", "tier", "deployment", "kind")
        for kind in ("input", "cached_input", "output", "reasoning"):
            counted = {key[:2]: value for key, value in tokens.items() if key[2] == kind}
            assert counted == by_place(rows, f"{kind}_tokens"), kind
        # Ends of jobs: one that was parked and came back ends again, and is one request all the same.
        asked = {row["job_id"] for row in rows if row["requests"]}
        ends = [row for row in rows if row["job_id"] in asked and row["state"] != "requeued"]
        assert metrics(http, "fabric_jobs_total", "outcome") == Counter((row["state"],) for row in ends)
        assert len(ends) == len(asked) + 3, "one job came back three times"
        assert metrics(http, "fabric_attempts_total", "result") == Counter(
            (row["state"],) for row in rows if row["attempt"] > 0
        )

        # Budgets: nothing is reserved, and spent is what the rows say.
        billed = [(row["cost_usd"] - row["machine_usd"], row) for row in rows]
        assert {
            name: budget.get("reserved_usd", budget.get("reserved_tokens")) for name, budget in budgets.items()
        } == (dict.fromkeys(budgets, 0))
        everything = sum(usd for usd, _ in billed)
        assert everything > 0
        for name, spent in (
            ("everything", everything),
            ("told", everything),
            ("half", sum(usd for usd, row in billed if row["tags"] and "half" in row["tags"])),
        ):
            assert budgets[name]["spent_usd"] == pytest.approx(spent, abs=len(rows) * 1e-9), name
        assert budgets["words"]["spent_tokens"] == sum(row["input_tokens"] + row["output_tokens"] for row in rows)
