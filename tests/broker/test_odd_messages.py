"""Thousands of messages that nobody sent on purpose, and the work that stands between them.

``FABRIC_TEST_ODD_MESSAGES=10000`` makes it ten thousand to each broker, which takes more than a minute.
"""

from __future__ import annotations

import itertools
import json
import os
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from kombu import Connection

from fabric.broker import queue
from fabric.contracts.catalog import Deployment
from fabric.store import bad_messages

if TYPE_CHECKING:
    from tests.broker.conftest import Start

MESSAGES = int(os.environ.get("FABRIC_TEST_ODD_MESSAGES", "1500"))
DEPLOYMENT = Deployment(name="odd", engine="mock", tier="cpu")
OURS = {"task": "fabric.run", "id": "1", "lang": "py"}


def bodies(chance: random.Random) -> Iterator[tuple[bytes | str, dict[str, Any], str, str]]:
    """Body, headers, content type and encoding, of every kind in turn, without end."""
    kinds = itertools.cycle(range(12))
    for kind in kinds:
        junk = chance.randbytes(chance.randint(0, 300))
        job = [["job_" + "0" * 26, 1]]
        yield [
            (junk, OURS, "application/json", "utf-8"),
            (junk, {}, "application/octet-stream", "binary"),
            (b"", OURS, "application/json", "utf-8"),
            (json.dumps([]), OURS, "application/json", "utf-8"),
            (json.dumps([[], {}, {}]), OURS, "application/json", "utf-8"),
            (json.dumps([[], {"deployment": "odd", "jobs": "all"}, {}]), OURS, "application/json", "utf-8"),
            (json.dumps([[], {"deployment": "odd", "jobs": [[1, 2]]}, {}]), OURS, "application/json", "utf-8"),
            (json.dumps([[], {"deployment": "odd", "jobs": job * 9_000}, {}]), OURS, "application/json", "utf-8"),
            (json.dumps([[], {}, {}]), {**OURS, "task": "os.system"}, "application/json", "utf-8"),
            (b"\x80\x04\x95cos\nsystem\n", OURS, "application/x-python-serialize", "binary"),
            ("[" * 5_000, OURS, "application/json", "utf-8"),
            (json.dumps({"a": "\ud800"}), {**OURS, "id": None}, "application/json", "utf-8"),
        ][kind]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("broker", ["valkey", "rabbitmq"])
def test_stop_nobody_and_are_all_counted(new_fabric: Start, broker: str) -> None:
    fabric = new_fabric(broker, {"odd": {}})
    processes = [fabric.scheduler(), fabric.worker()]
    jobs: list[str] = []
    with Connection(fabric.broker_url) as connection:
        channel = connection.default_channel
        queue(DEPLOYMENT)(channel).declare()
        producer = connection.Producer(auto_declare=False)
        for number, (body, headers, kind, encoding) in enumerate(itertools.islice(bodies(random.Random(6)), MESSAGES)):
            producer.publish(
                body,
                exchange="",
                routing_key=DEPLOYMENT.queue,
                headers=headers,
                content_type=kind,
                content_encoding=encoding,
            )
            if number % 100 == 0:
                jobs += fabric.accept("odd", 1)
    assert {end.state for end in fabric.ended(jobs)} == {"succeeded"}
    fabric.until(lambda: fabric.store(bad_messages.count()) >= MESSAGES, within_s=200)
    assert fabric.store(bad_messages.count()) == MESSAGES
    assert fabric.store(bad_messages.kept_count()) == bad_messages.KEPT, "the newest"
    assert [process.popen.poll() for process in processes] == [None, None]
    after = fabric.accept("odd", 5)
    assert {end.state for end in fabric.ended(after)} == {"succeeded"}
