"""A real Prometheus, set up as compose/ sets it up, scrapes a real fabric under a mixed load. Every panel of every
dashboard then shows something, and every alert is evaluated over series that exist."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import yaml

from tests.conftest import free_ports
from tests.e2e.conftest import ROOT, new_fabric, until
from tests.e2e.test_fallback import Provider

if TYPE_CHECKING:
    from tests.e2e.conftest import Fabric

COMPOSE = ROOT / "compose"
PATIENCE_S = 90.0
#: Between two scrapes. Grafana knows the interval of its source and derives ``$__rate_interval`` from it.
SCRAPE_S = 1
CONFIG = """
default_policy: cloud-first
baseline: {{model: gpt-5, provider: openai}}
tiers: {{cpu: {{watts: 100, usd_per_kwh: 0.5, usd_per_hour: 3.55}}}}
budgets: [{{name: everything, usd: 1000, window: total}}]
models:
  - name: chain
    deployments:
      - {{name: chain-cloud, engine: openai, tier: cloud, base_url: "{url}/v1", model: m, api_key_env: PLAYED_KEY,
         breaker: {{failures: 99, minimum: 99}}}}
      - {{name: chain-cpu, engine: mock, tier: cpu}}
  - name: plain
    deployments:
      - {{name: plain-cpu, engine: mock, tier: cpu, options: {{latency_ms: 2}}}}
  - name: hosted
    deployments:
      - {{name: hosted, engine: mock, tier: cloud, options: {{latency_ms: 2}}, price: {{output_per_million: 20}}}}
  - name: hopeless
    deployments:
      - {{name: hopeless-cpu, engine: mock, tier: cpu, options: {{fail: 1}}, breaker: {{failures: 99, minimum: 99}}}}
  - name: asleep
    deployments:
      - {{name: asleep-cpu, engine: mock, tier: cpu, options: {{latency_ms: 600000}}}}
"""
LINES = 20
_SELECTOR = re.compile(r"\b(?:fabric_[a-z0-9_]+|up)(?:\{[^}]*\})?")
#: Panels that show nothing after this load, each with the reason: ``"dashboard / panel": "why"``.
EMPTY_PANELS: dict[str, str] = {}


@dataclass(frozen=True)
class Prometheus:
    """A running one, asked through its HTTP API."""

    url: str

    def get(self, path: str, **params: Any) -> Any:
        """``data`` of an answer; a query that can't be parsed or run fails the test with what Prometheus says of it."""
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=params, timeout=60, trust_env=False)
        assert answer.status_code == 200, f"{params}: {answer.text}"
        return answer.json()["data"]

    def ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/-/ready", timeout=10, trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def value(self, query: str) -> float:
        """Of a query with one sample; 0 where there is none yet."""
        found = self.get("query", query=query)["result"]
        return float(found[0]["value"][1]) if found else 0.0

    def now(self) -> float:
        return float(self.get("query", query="time()")["result"][1])

    def drawn(self, query: str, since: float) -> int:
        """How many points a panel would draw of it: those that are numbers."""
        end = self.now()
        start = end - math.ceil((end - since) / SCRAPE_S) * SCRAPE_S  # so that the last step sees the newest sample
        series = self.get("query_range", query=query, start=start, end=end, step=SCRAPE_S)["result"]
        return sum(math.isfinite(float(value)) for each in series for _, value in each["values"])


@dataclass(frozen=True)
class Panel:
    where: str  #: dashboard / title
    query: str
    of_zero: bool  #: shows a figure, or a share of what failed: 0 while all is well


def panels() -> list[Panel]:
    """Every query of every panel, with the variables as Grafana fills them in."""
    [source] = yaml.safe_load((COMPOSE / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    scraped = yaml.safe_load((COMPOSE / "prometheus/prometheus.yml").read_text())["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scraped, "Grafana reckons with another interval than Prometheus keeps"
    found = []
    for path in sorted((COMPOSE / "grafana/dashboards").glob("*.json")):
        dashboard = json.loads(path.read_text())
        filled = {
            "$__rate_interval": f"{max(SCRAPE_S + SCRAPE_S, 4 * SCRAPE_S)}s",
            "$__interval": f"{SCRAPE_S}s",
            **{f"${one['name']}": one["current"]["value"] for one in dashboard["templating"]["list"]},
        }
        for panel in dashboard["panels"]:
            for target in panel["targets"]:
                query = target["expr"]
                for name, value in filled.items():
                    query = query.replace(name, value)
                assert "$" not in query, target["expr"]
                of_zero = panel["type"] == "stat" or "fail" in panel["title"].lower()
                found.append(Panel(f"{dashboard['title']} / {panel['title']}", query, of_zero))
    return found


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((COMPOSE / "prometheus/rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def key(fabric: Fabric, *scopes: str) -> str:
    options = [word for scope in scopes for word in ("--scope", scope)]
    made = fabric.command("keys", "create", "--tenant", "acme", *options, "--json")
    assert made.returncode == 0, made.stderr
    return str(json.loads(made.stdout)["key"])


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    """A hosted API that fails every request."""
    with Provider.running() as server:
        yield server


@pytest.fixture(scope="module")
def fabric(provider: Provider) -> Iterator[Fabric]:
    for fabric in new_fabric(PLAYED_KEY="played"):
        yield fabric.start(CONFIG.format(url=provider.url))


@pytest.fixture(scope="module")
def http(fabric: Fabric) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {key(fabric, 'inference', 'batch', 'read')}"}
    with httpx.Client(base_url=fabric.url, headers=headers, timeout=60, trust_env=False) as client:
        until(lambda: client.get("/v1/jobs").status_code == 200, within_s=30, hint="for the key to count")
        yield client


def configuration(fabric: Fabric, folder: Path, port: int) -> Path:
    """The files of compose/, with other addresses and intervals, and the key's file elsewhere."""
    config = yaml.safe_load((COMPOSE / "prometheus/prometheus.yml").read_text())
    config["global"] |= dict.fromkeys(("scrape_interval", "scrape_timeout", "evaluation_interval"), f"{SCRAPE_S}s")
    [gateways, itself] = config["scrape_configs"]
    (folder / "key").write_text(key(fabric, "read"))
    gateways["authorization"]["credentials_file"] = str(folder / "key")
    del gateways["dns_sd_configs"]
    gateways["static_configs"] = [{"targets": [fabric.url.removeprefix("http://")]}]
    itself["static_configs"] = [{"targets": [f"127.0.0.1:{port}"]}]
    shutil.copy(COMPOSE / "prometheus/rules.yml", folder)
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    return folder / "prometheus.yml"


@pytest.fixture(scope="module")
def prometheus(fabric: Fabric, http: httpx.Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """It has scraped the fabric at least once."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus isn't installed (Debian: prometheus)")
    folder = tmp_path_factory.mktemp("prometheus")
    [port] = free_ports(1)
    command = [
        *(program, f"--config.file={configuration(fabric, folder, port)}", f"--storage.tsdb.path={folder / 'data'}"),
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    log = folder / "log"
    with ExitStack() as stack:
        file = stack.enter_context(log.open("wb"))
        process = subprocess.Popen(command, env={"PATH": os.environ["PATH"]}, stdout=file, stderr=file)
        stack.callback(process.wait)
        stack.callback(process.kill)
        found = Prometheus(f"http://127.0.0.1:{port}")

        def running() -> bool:
            assert process.poll() is None, log.read_text()[-3000:]
            return found.ready()

        until(running, within_s=PATIENCE_S, hint="for Prometheus to be ready")
        until(lambda: _all_up(found), within_s=PATIENCE_S, hint="for its targets to be up")
        until(lambda: found.value("max(fabric_store_up)"), within_s=PATIENCE_S, hint="for a first sample")
        yield found


def _all_up(prometheus: Prometheus) -> bool:
    targets = prometheus.get("targets")["activeTargets"]
    return len(targets) == 2 and all(target["health"] == "up" for target in targets)


def ask(model: str, **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, **fields}


def load(http: httpx.Client) -> None:
    """A bit of everything, and each of it ended."""
    chats = "/v1/chat/completions"
    moved = http.post(chats, json=ask("chain"))
    assert (moved.status_code, moved.headers["x-fabric-tier"]) == (200, "cpu"), moved.text
    assert http.post(chats, json=ask("chain", fabric={"privacy": "restricted"})).status_code == 200
    for model in ("plain", "hosted"):
        assert http.post(chats, json=ask(model)).status_code == 200
        assert http.post(chats, json=ask(model, stream=True)).text.endswith("data: [DONE]\n\n")
    assert http.post(chats, json=ask("hopeless")).status_code == 502, "a dead letter"
    assert http.post(chats, json=ask("asleep", fabric={"deadline_s": 1})).status_code in (408, 504), "it expires"
    assert http.post(chats, json={"model": "plain"}).status_code == 400, "the caller's fault"
    lines = "".join(
        json.dumps({"custom_id": str(n), "method": "POST", "url": chats, "body": ask("plain")}) + "\n"
        for n in range(LINES)
    )
    file = http.post("/v1/files", files={"file": ("in.jsonl", lines.encode())}, data={"purpose": "batch"}).json()
    asked = {"input_file_id": file["id"], "endpoint": chats, "completion_window": "24h"}
    batch = http.post("/v1/batches", json=asked).json()
    until(lambda: http.get(f"/v1/batches/{batch['id']}").json()["status"] == "completed", within_s=PATIENCE_S)


#: What one load leaves behind: query -> value.
LEFT = {
    'sum(max by (tier, deployment) (fabric_jobs_total{outcome="succeeded"}))': 6 + LINES,
    'sum(max by (tier, deployment) (fabric_jobs_total{outcome="dead"}))': 1,
    'sum(max by (tier, deployment) (fabric_jobs_total{outcome="expired"}))': 1,
    "sum(max by (from_tier) (fabric_fallbacks_total))": 1,
    "sum(fabric_time_to_first_token_seconds_count)": 2,
    'sum(fabric_http_requests_total{status="502"})': 1,
}


def left(prometheus: Prometheus) -> dict[str, float]:
    return {query: prometheus.value(query) for query in LEFT}


def seen(prometheus: Prometheus, before: dict[str, float]) -> bool:
    return all(now >= before[query] + LEFT[query] for query, now in left(prometheus).items())


@pytest.fixture(scope="module")
def loaded(prometheus: Prometheus, http: httpx.Client) -> tuple[Prometheus, float]:
    """Prometheus after one load that it has seen, and the second before it. One is enough: counters begin at 0."""
    since, before = prometheus.now(), left(prometheus)
    load(http)
    until(partial(seen, prometheus, before), within_s=PATIENCE_S, hint="for the load to be scraped")
    return prometheus, since


def test_figures_are_there_while_nothing_fails(prometheus: Prometheus, http: httpx.Client) -> None:
    """A share of nothing is 0, not a gap that looks as if the figure couldn't be had."""
    since = prometheus.now()
    assert http.post("/v1/chat/completions", json=ask("plain")).status_code == 200
    for counter in (
        'sum(fabric_http_requests_total{route="/v1/chat/completions",status="200"})',
        'sum(max by (deployment) (fabric_jobs_total{outcome="succeeded"}))',
    ):
        until(partial(prometheus.value, f"{counter} >= 1"), within_s=PATIENCE_S, hint="for a scrape")
    figures = [panel for panel in panels() if panel.of_zero]
    assert [panel.where for panel in figures if not prometheus.drawn(panel.query, since)] == []


#: Each happened once.
FIRSTS = (
    'sum(max by (tier, deployment) (increase(fabric_jobs_total{outcome="dead"}[1h])))',
    'sum(max by (tier, deployment) (increase(fabric_jobs_total{outcome="expired"}[1h])))',
    "sum(max by (from_tier) (increase(fabric_fallbacks_total[1h])))",
    'sum(increase(fabric_errors_total{fault="caller"}[1h]))',
    'sum(increase(fabric_http_requests_total{route="/v1/chat/completions",status="502"}[1h]))',
)


def test_the_first_failure_of_a_kind_is_an_increase(loaded: tuple[Prometheus, float]) -> None:
    prometheus, _ = loaded
    found = {query: prometheus.value(query) for query in FIRSTS}
    assert {query: value > 0 for query, value in found.items()} == dict.fromkeys(FIRSTS, True), found


def test_every_panel_shows_something(loaded: tuple[Prometheus, float]) -> None:
    prometheus, since = loaded
    empty = {panel.where: panel.query for panel in panels() if not prometheus.drawn(panel.query, since)}
    assert empty.keys() == EMPTY_PANELS.keys(), empty


def test_every_rule_is_evaluated_over_series_that_exist(loaded: tuple[Prometheus, float]) -> None:
    prometheus, _ = loaded

    def evaluated() -> list[dict[str, Any]]:
        groups = prometheus.get("rules")["groups"]
        found = [rule for group in groups for rule in group["rules"]]
        return [] if any(rule["health"] == "unknown" for rule in found) else found

    found = until(evaluated, within_s=PATIENCE_S, hint="for every rule to be evaluated")
    written = rules()
    assert {rule["name"] for rule in found} == {rule["alert"] for rule in written}
    assert [(rule["name"], rule["lastError"]) for rule in found if rule["health"] != "ok"] == []
    for rule in written:
        prometheus.get("query", query=rule["expr"])
        selectors = _SELECTOR.findall(rule["expr"])
        assert selectors, rule["expr"]
        for selector in selectors:
            assert prometheus.get("query", query=selector)["result"], f"{rule['alert']}: nothing is {selector}"


def test_what_is_wrong_is_alerted_and_nothing_else(loaded: tuple[Prometheus, float]) -> None:
    """The dead letter. What such a load also looks like for some minutes (its errors are many for so few
    requests) is waited out by the rules."""
    prometheus, _ = loaded

    def noticed() -> dict[str, str] | None:
        states = _states(prometheus)
        return states if states["FabricDeadLetters"] != "inactive" else None

    states = until(noticed, within_s=PATIENCE_S, hint="for the dead letters to be noticed")
    assert not {name for name, state in states.items() if state == "firing"} - {"FabricDeadLetters"}
    quiet = {"FabricGatewayAway", "FabricStoreAway", "FabricNobodyWorks", "FabricBreakerOpen", "FabricBacklogLong"}
    assert {states[name] for name in quiet} == {"inactive"}


def _states(prometheus: Prometheus) -> dict[str, str]:
    groups = prometheus.get("rules", type="alert")["groups"]
    return {rule["name"]: rule["state"] for group in groups for rule in group["rules"]}
