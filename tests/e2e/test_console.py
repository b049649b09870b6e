"""A whole fabric: the console's numbers move while a batch runs, and every promised metric is there."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import orjson
from playwright.sync_api import TimeoutError as PlaywrightTimeout

if TYPE_CHECKING:
    from tests.e2e.conftest import Fabric

PATIENCE_MS = 120_000
LINES = 60
#: Promised metric -> its labels. Those of the last group have samples only once something went wrong.
PROMISED = {
    "fabric_jobs_total": {"tier", "deployment", "outcome"},
    "fabric_backlog_jobs": {"class"},
    "fabric_backlog_seconds": {"tier"},
    "fabric_stage_seconds_bucket": {"stage", "tier", "le"},
    "fabric_time_to_first_token_seconds_bucket": {"le"},
    "fabric_tokens_total": {"tier", "deployment", "kind"},
    "fabric_attempts_total": {"tier", "deployment", "result"},
    "fabric_breaker_state": {"deployment"},
    "fabric_worker_slots": {"tier", "state"},
    "fabric_label_blocks_total": {"label"},
    "fabric_fenced_commits_total": set(),
}
QUIET = ("fabric_cost_usd_total", "fabric_fallbacks_total", "fabric_dead_letters", "fabric_errors_total")


def test_a_batch_moves_on_the_page_and_is_counted(real: Fabric, chromium: Any) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}
    with real.http() as http:
        body["model"] = http.get("/v1/models").json()["data"][0]["id"]
        lines = b"".join(
            orjson.dumps({"custom_id": str(n), "method": "POST", "url": "/v1/chat/completions", "body": body}) + b"\n"
            for n in range(LINES)
        )
        page = chromium.new_context(base_url=real.url).new_page()
        problems: list[str] = []
        page.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
        page.goto("/console/batches")
        file_id = http.post("/v1/files", files={"file": ("in.jsonl", lines)}, data={"purpose": "batch"}).json()["id"]
        asked = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        batch_id = http.post("/v1/batches", json=asked).json()["id"]
        try:
            page.wait_for_selector(f"#{batch_id}", timeout=PATIENCE_MS)
        except PlaywrightTimeout:
            told = f"{problems}\n{page.inner_text('main')}\n{http.get(f'/v1/batches/{batch_id}').text}"
            raise AssertionError(f"the page doesn't show the batch: {told}") from None
        page.wait_for_function(
            f"() => document.querySelector('#{batch_id} .done').innerText !== '0'", timeout=PATIENCE_MS
        )
        page.wait_for_selector(f"#{batch_id} .state.completed", timeout=PATIENCE_MS)
        assert page.locator(f"#{batch_id} .done").inner_text() == str(LINES)
        page.goto("/console")
        ended = page.locator('[data-ended="cpu"]')
        page.wait_for_function(
            f"() => parseInt(document.querySelector('[data-ended=cpu]').innerText) >= {LINES}", timeout=PATIENCE_MS
        )
        assert ended.count() == 1 and problems == []
        page.context.close()
        text = http.get("/metrics").text
    for name, labels in PROMISED.items():
        samples = re.findall(rf"(?m)^{name}(?:\{{([^}}]*)\}})? ", text)
        assert samples, name
        assert {label for sample in samples for label in re.findall(r'(\w+)="', sample)} == labels, name
    for name in QUIET:
        assert f"# TYPE {name} " in text, name
    succeeded = re.findall(r'(?m)^fabric_jobs_total\{.*outcome="succeeded".*\} (\S+)$', text)
    assert sum(map(float, succeeded)) >= LINES
    stages = set(re.findall(r'(?m)^fabric_stage_seconds_count\{stage="(\w+)"', text))
    assert stages == {"accept", "backlog", "queue", "engine", "commit"}
