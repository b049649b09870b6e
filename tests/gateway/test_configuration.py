"""A gateway whose configuration file changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fabric.settings import load
from fabric.settings.watch import Watch
from fabric.store import Store, transitions

if TYPE_CHECKING:
    import httpx

    from fabric.gateway import GatewaySettings
    from tests.gateway.conftest import Served

CHAT = "/v1/chat/completions"
FILE = """\
models:
  - name: small
    deployments:
      - {engine: mock, tier: cpu, base_url: "http://secret-host"}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "fabric.yaml"
    path.write_text(FILE)
    return path


@pytest.fixture
def http(file: Path, serve: Callable[..., Served], settings: GatewaySettings) -> httpx.Client:
    loaded = load(file, {})
    watched = Watch(loaded, {}, look_s=0)
    client: httpx.Client = serve(replace(settings, catalog=loaded.catalog, watch=watched)).http()
    return client


def config(http: httpx.Client) -> dict[str, Any]:
    shown: dict[str, Any] = http.get("/v1/tiers").json()["config"]
    return shown


def job() -> dict[str, Any]:
    body = {"model": "small", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
    return {"endpoint": CHAT, "body": body}


def test_a_change_counts_for_the_requests_that_follow(
    file: Path, http: httpx.Client, store: Store, eventually: Callable[[Callable[[], Any]], Any]
) -> None:
    before = config(http)["policy_hash"]
    assert http.post("/v1/jobs", json=job()).status_code == 202
    file.write_text(FILE + 'rules:\n  - {name: shut, deny: "Closed."}\n')
    eventually(lambda: config(http)["policy_hash"] != before)
    assert http.post("/v1/jobs", json=job()).status_code == 403
    (lane,) = store(transitions.room()).lanes
    (taken,) = store(transitions.take([(lane.name, 5)]))
    assert taken.spec.accepted_under == before, "the job that was in is still there, under its rules"


def test_a_broken_file_is_complained_of_and_changes_nothing(
    file: Path, http: httpx.Client, eventually: Callable[[Callable[[], Any]], Any]
) -> None:
    before = config(http)["policy_hash"]
    assert config(http)["problem"] is None
    file.write_text(FILE + "polices: {}\n")
    problem = eventually(lambda: config(http)["problem"])
    assert problem.startswith("fabric.yaml:5: unknown key `polices`")
    assert config(http)["policy_hash"] == before
    assert http.post("/v1/jobs", json=job()).status_code == 202
    metrics = http.get("/metrics").text
    assert f'fabric_config_info{{hash="{before}"}} 1.0' in metrics
    assert "fabric_config_reload_failures_total 1.0" in metrics
    file.write_text(FILE)
    eventually(lambda: config(http)["problem"] is None)


def test_what_decisions_are_made_under_can_be_read(
    http: httpx.Client, eventually: Callable[[Callable[[], Any]], Any]
) -> None:
    hash_ = http.post("/v1/route", json=job()).json()["decision"]["policy_hash"]
    answer = eventually(lambda: (found := http.get(f"/v1/policies/{hash_}")).is_success and found)
    assert answer.json()["policy_hash"] == hash_
    assert answer.json()["models"][0]["name"] == "small"
    assert "secret-host" not in answer.text
    assert http.get("/v1/policies/none-such").status_code == 404
