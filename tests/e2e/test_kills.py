"""kill -9 of every process in turn, during a batch: every line comes out exactly once."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from fabric.client import Client

if TYPE_CHECKING:
    from tests.e2e.conftest import Fabric

LINES = 2_000
CONFIG = """
models:
  - name: mock
    deployments:
      - {engine: mock, tier: cpu, slots: 32, options: {latency_ms: 400}}
"""
#: In this order; each dies when lines have moved on since the death before.
VICTIMS = ("worker-cpu", "scheduler", "recorder", "valkey", "api", "worker-cpu", "valkey")


def test_kill_every_process_during_a_batch(fresh: Fabric) -> None:
    fabric = fresh.start(CONFIG)
    source = fabric.folder / "in.jsonl"
    body = {"model": "mock", "messages": [{"role": "user", "content": "hello"}]}
    with source.open("w") as file:
        for n in range(LINES):
            line = {"custom_id": f"line-{n}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(line) + "\n")
    victims = list(VICTIMS)
    done_before = 0

    def strike(done: int, total: int | None) -> None:
        nonlocal done_before
        if victims and done > done_before:
            fabric.kill(victims.pop(0))
            done_before = done

    with Client(fabric.url) as client:
        batch = client.batch(source)
        batch.wait(timeout=150, progress=strike)
        results = list(batch.results())
    assert not victims
    assert batch.status == "completed"
    assert batch.values["request_counts"] == {"total": LINES, "completed": LINES, "failed": 0}
    assert len(results) == LINES
    assert len({result["custom_id"] for result in results}) == LINES
    assert fabric.stop() == 0, fabric.log()[-3000:]


def test_a_batch_survives_the_end_of_the_whole_fabric(fresh: Fabric) -> None:
    """The supervisor itself is killed, with all its children; the next start goes on."""
    fabric = fresh.start(CONFIG)
    source = fabric.folder / "in.jsonl"
    body = {"model": "mock", "messages": [{"role": "user", "content": "hello"}]}
    lines = [
        json.dumps({"custom_id": f"line-{n}", "method": "POST", "url": "/v1/chat/completions", "body": body})
        for n in range(800)
    ]
    source.write_text("\n".join(lines))
    with Client(fabric.url) as client:
        batch = client.batch(source)

        def halfway(done: int, total: int | None) -> None:
            if done > 200:
                raise StopIteration

        try:
            batch.wait(timeout=60, progress=halfway)
        except StopIteration:
            pass
    fabric.end()
    fabric.start()
    with Client(fabric.url) as client:
        again = client.get_batch(batch.id)
        again.wait(timeout=90, progress=False)
        results = list(again.results())
    assert again.values["request_counts"] == {"total": 800, "completed": 800, "failed": 0}
    assert len({result["custom_id"] for result in results}) == len(results) == 800
