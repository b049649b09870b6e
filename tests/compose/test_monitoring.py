"""Prometheus, its rules and Grafana's dashboard ask for metrics that the gateway really exports."""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fabric.gateway.metrics import Metrics, Snapshot
from fabric.store.transitions import Room

_NAME = re.compile(r"\bfabric_[a-z0-9_]+\b")
_SELECTOR = re.compile(r"\b(fabric_[a-z0-9_]+)\{([^}]*)\}")
#: Every metric that the fabric promises, with its labels.
LABELS: dict[str, set[str]] = {
    "fabric_jobs_total": {"tier", "deployment", "outcome"},
    "fabric_backlog_jobs": {"class"},
    "fabric_backlog_seconds": {"tier"},
    "fabric_stage_seconds": {"stage", "tier"},
    "fabric_time_to_first_token_seconds": set(),
    "fabric_tokens_total": {"tier", "deployment", "kind"},
    "fabric_cost_usd_total": {"tier", "deployment"},
    "fabric_cloud_equivalent_usd_total": {"tier", "deployment"},
    "fabric_compared_cost_usd_total": {"tier", "deployment"},
    "fabric_attempts_total": {"tier", "deployment", "result"},
    "fabric_hedges_total": {"result"},
    "fabric_prediction_error_ratio": {"kind", "tier"},
    "fabric_fallbacks_total": {"from_tier", "to_tier", "reason"},
    "fabric_dead_letters": {"queue"},
    "fabric_breaker_state": {"deployment"},
    "fabric_budget_used_ratio": {"budget"},
    "fabric_worker_slots": {"tier", "state"},
    "fabric_label_blocks_total": {"label"},
    "fabric_fenced_commits_total": set(),
    "fabric_errors_total": {"fault"},
    "fabric_http_requests_total": {"route", "method", "status"},
    "fabric_store_up": set(),
}
_SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("",), "gauge": ("",)}


@pytest.fixture(scope="module")
def exported() -> set[str]:
    """The names of every series that ``GET /metrics`` may hold."""
    text = Metrics().exposition(Snapshot(Room((), {}, ()), Counter(), 0, {"gpu": 0.0})).decode()
    kinds = dict(re.findall(r"(?m)^# TYPE (\S+) (\S+)$", text))
    return {name + suffix for name, kind in kinds.items() for suffix in _SUFFIXES[kind]}


@pytest.fixture(scope="module")
def rules(folder: Path) -> list[dict[str, Any]]:
    groups = yaml.safe_load((folder / "prometheus/rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


@pytest.fixture(scope="module")
def dashboards(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((folder / "grafana/dashboards").glob("*.json"))]


def queries(dashboards: list[dict[str, Any]]) -> Iterator[str]:
    for dashboard in dashboards:
        for panel in dashboard["panels"]:
            for target in panel["targets"]:
                yield target["expr"]


def test_rules_and_dashboard_use_only_what_is_exported(
    exported: set[str], rules: list[dict[str, Any]], dashboards: list[dict[str, Any]]
) -> None:
    used = {name for text in [*(rule["expr"] for rule in rules), *queries(dashboards)] for name in _NAME.findall(text)}
    assert used and used <= exported, used - exported


def test_labels_are_ones_that_the_metrics_have(rules: list[dict[str, Any]], dashboards: list[dict[str, Any]]) -> None:
    for text in [*(rule["expr"] for rule in rules), *queries(dashboards)]:
        for name, selector in _SELECTOR.findall(text):
            metric = re.sub("_(bucket|sum|count)$", "", name)
            assert {part.partition("=")[0].rstrip("!") for part in selector.split(",")} <= LABELS[metric], text


def test_every_alert_says_what_to_do(rules: list[dict[str, Any]]) -> None:
    for rule in rules:
        assert rule["alert"].startswith("Fabric") and rule["labels"]["severity"] in ("page", "look")
        assert rule["annotations"].keys() == {"summary", "action"} and rule["for"]


def test_what_every_gateway_repeats_is_never_summed_over_gateways(
    rules: list[dict[str, Any]], dashboards: list[dict[str, Any]]
) -> None:
    shared = (
        "fabric_(?:backlog_jobs|backlog_seconds|worker_slots|dead_letters|store_up|fenced_commits_total|jobs_total|"
        "attempts_total|tokens_total|cost_usd_total|cloud_equivalent_usd_total|compared_cost_usd_total|fallbacks_total|breaker_state|label_blocks_total)"
    )
    for text in [*(rule["expr"] for rule in rules), *queries(dashboards)]:
        assert not re.search(rf"sum(?: by \([^)]*\))? ?\(?(?:rate\(|increase\()?{shared}", text), text


def test_prometheus_finds_the_gateways_and_grafana_finds_prometheus(compose: Any, folder: Path) -> None:
    config = yaml.safe_load((folder / "prometheus/prometheus.yml").read_text())
    [found] = config["scrape_configs"][0]["dns_sd_configs"]
    assert found["names"][0] in compose.services and str(found["port"]) == compose.environment("api")["FABRIC_PORT"]
    assert all((folder / "prometheus" / name).exists() for name in config["rule_files"])
    [source] = yaml.safe_load((folder / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    [provider] = yaml.safe_load((folder / "grafana/provisioning/dashboards/fabric.yml").read_text())["providers"]
    mounts = dict(volume.removesuffix(":ro").split(":") for volume in compose.services["grafana"]["volumes"])
    assert mounts["./grafana/dashboards"] == provider["options"]["path"]
    home = compose.environment("grafana")["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (folder / "grafana/dashboards" / Path(home).name).exists()


def test_panels_have_places_of_their_own(dashboards: list[dict[str, Any]]) -> None:
    for dashboard in dashboards:
        taken: set[tuple[int, int]] = set()
        for panel in dashboard["panels"]:
            at = panel["gridPos"]
            cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
            assert not cells & taken and max(x for x, _ in cells) < 24 and panel["description"]
            taken |= cells
        assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    assert len({dashboard["uid"] for dashboard in dashboards}) == len(dashboards) == 4


def test_promises_are_kept(exported: set[str]) -> None:
    assert [name for name in LABELS if not {name, f"{name}_bucket"} & exported] == []


@pytest.mark.parametrize(
    "arguments",
    [
        # The file with the key is made when the container starts.
        ("check", "config", "--syntax-only", "compose/prometheus/prometheus.yml"),
        ("check", "rules", "compose/prometheus/rules.yml"),
        ("test", "rules", "tests/compose/rules_test.yml"),
    ],
)
def test_promtool_agrees(arguments: tuple[str, ...], folder: Path, tool: Any) -> None:
    promtool = tool("promtool", "Debian: prometheus")
    said = subprocess.run([promtool, *arguments], capture_output=True, text=True, cwd=folder.parent)
    assert said.returncode == 0, said.stdout + said.stderr
