"""A batch that may wait goes to the provider's batch API: once, also over a killed worker, and at half the price."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.conftest import new_fabric, until
from tests.workers.engines.fake_batches import FakeBatches

if TYPE_CHECKING:
    from tests.e2e.conftest import Fabric

LINES = 60
CONFIG = """
default_policy: cheapest
models:
  - name: big
    deployments:
      - name: big
        engine: openai
        tier: cloud
        base_url: "{url}"
        model: big
        api_key_env: PLAYED_KEY
        context_window: 8192
        price: {{input_per_million: 2, output_per_million: 8}}
        batch_api: {{gather_s: 1, poll_s: 0.2}}
"""


@pytest.fixture(scope="module")
def provider() -> Iterator[FakeBatches]:
    fake = FakeBatches()
    yield fake
    fake.stop()


@pytest.fixture(scope="module")
def fabric(provider: FakeBatches) -> Iterator[Fabric]:
    for fabric in new_fabric(PLAYED_KEY="played"):
        yield fabric.start(CONFIG.format(url=provider.url))


def line(number: int) -> str:
    messages = [{"role": "user", "content": f"question {number}"}]
    body = {"model": "big", "messages": messages, "max_tokens": 50}
    return json.dumps({"custom_id": f"c{number}", "method": "POST", "url": "/v1/chat/completions", "body": body})


def test_half_the_price_and_nothing_twice(fabric: Fabric, provider: FakeBatches) -> None:
    client = fabric.openai()
    source = "\n".join(map(line, range(LINES))).encode()
    file = client.files.create(file=("in.jsonl", source), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    until(lambda: sum(len(made.requests) for made in provider.batches.values()) >= LINES, within_s=60)
    made = len(provider.batches)
    fabric.kill("worker-cloud")
    until(lambda: fabric.http().get("/v1/tiers").json()["data"], within_s=60)
    provider.release.set()
    done = until(lambda: _ended(client, batch.id), within_s=120)
    assert (done.request_counts.completed, done.request_counts.failed) == (LINES, 0)
    assert done.output_file_id is not None
    lines = [json.loads(text) for text in client.files.content(done.output_file_id).text.splitlines()]
    assert len({each["custom_id"] for each in lines}) == LINES
    assert len(provider.batches) == made
    assert provider.sync_calls == 0
    (row,) = fabric.http().get("/v1/costs", params={"model": "big"}).json()["data"]
    assert row["cost_usd"] == pytest.approx(LINES * (100 * 1 + 50 * 4) / 1e6)


def test_somebody_who_waits_is_answered_at_once(fabric: Fabric, provider: FakeBatches) -> None:
    answer: Any = fabric.openai().chat.completions.create(
        model="big", messages=[{"role": "user", "content": "hi"}], max_tokens=50
    )
    assert answer.choices[0].message.content == "at once"
    assert provider.sync_calls == 1


def _ended(client: Any, batch_id: str) -> Any:
    batch = client.batches.retrieve(batch_id)
    return batch if batch.status not in ("validating", "in_progress", "finalizing") else None
