"""Thousands of messages that nobody sent on purpose, in every queue, and the work that stands between them.

``FABRIC_TEST_ODD_MESSAGES=10000`` puts ten thousand into each queue, which takes some minutes.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from kombu import Connection

from fabric.broker import DEAD_EXCHANGE, dead_queue, queue
from fabric.contracts.catalog import TIERS, Deployment
from fabric.contracts.sealed import about
from fabric.contracts.secret import Secrets
from fabric.contracts.signed import Signer
from fabric.store import bad_messages

if TYPE_CHECKING:
    from tests.broker.conftest import Fabric, Process, Start

#: Into each queue.
MESSAGES = int(os.environ.get("FABRIC_TEST_ODD_MESSAGES", "400"))
DEPLOYMENTS = [Deployment(name=f"odd-{tier}", engine="mock", tier=tier) for tier in TIERS]
OWN = {"id": "evt_1", "root_id": "evt_1", "kwargsrepr": "odd: x", "origin": "scheduler@here"}
OURS = {
    **{"task": "fabric.run", "lang": "py", "parent_id": None, "group": None, "retries": 0, "eta": None, **OWN},
    **{"expires": None, "timelimit": [None, None], "argsrepr": "()", "ignore_result": True},
}
STRANGER = Signer.of(Secrets.passing())


def kinds(chance: random.Random, scheduler: Signer, name: str) -> Iterator[tuple[bytes, dict[str, Any], str, str]]:
    """Body, headers, content type and encoding, of every kind in turn, without end: most are signed by the scheduler
    itself, so that what lies behind the signature is met, too."""

    def signed(body: bytes, headers: dict[str, Any] = OURS, by: Signer = scheduler) -> dict[str, Any]:
        signature = by.sign(about("message", name, *OWN.values()) + body)
        return {**headers, "signature": signature}

    job = [["job_" + "0" * 26, 1]]
    bodies: list[Any] = [
        *([], {}, [[], {}, {}], [[], {}, {}, {}], None, 5, "fabric.run"),
        *([[], {"deployment": "odd", "jobs": jobs}, {}] for jobs in ("all", [[1, 2]], [["x"]], job * 65, {}, None)),
        [[], {"deployment": "odd", "jobs": job}, {"callbacks": [{"task": "other"}]}],
        [[], {"deployment": "odd", "jobs": job, "more": 1}, {}],
        {"a": "\ud800"},
    ]
    for number in itertools.count():
        junk = chance.randbytes(chance.randint(0, 300))
        body = json.dumps(bodies[number % len(bodies)]).encode()
        good = json.dumps([[], {"deployment": "odd", "jobs": job}, {}]).encode()
        deep, long = b"[" * 5_000, b" " * 20_000
        yield [
            (body, signed(body), "application/json", "utf-8"),
            (junk, signed(junk), "application/json", "utf-8"),
            (junk, {}, "application/octet-stream", "binary"),
            (b"", signed(b""), "application/json", "utf-8"),
            (deep, signed(deep), "application/json", "utf-8"),
            (long, signed(long), "application/json", "utf-8"),
            (good, OURS, "application/json", "utf-8"),
            (good, signed(good, by=STRANGER), "application/json", "utf-8"),
            (good, signed(good, {**OURS, "eta": "2030-01-01T00:00:00"}), "application/json", "utf-8"),
            (good, signed(good, {**OURS, "task": "os.system"}), "application/json", "utf-8"),
            (good, {**OURS, "id": None, "signature": junk.hex()}, "application/json", "utf-8"),
            (good, {**signed(good), "compression": "application/x-gzip"}, "application/json", "utf-8"),
            (zlib.compress(good), {**signed(good), "compression": "gzip"}, "application/json", "utf-8"),
            (b"\x80\x04\x95cos\nsystem\n", OURS, "application/x-python-serialize", "binary"),
        ][number % 14]


def put(connection: Connection, signer: Signer, deployment: Deployment) -> Iterator[int]:
    """One after the other, into that deployment's queue."""
    producer = connection.Producer(auto_declare=False)
    odd = itertools.islice(kinds(random.Random(6), signer, deployment.queue), MESSAGES)
    for number, (body, headers, kind, encoding) in enumerate(odd):
        producer.publish(
            body,
            exchange="",
            routing_key=deployment.queue,
            headers=headers,
            content_type=kind,
            content_encoding=encoding,
        )
        yield number


def put_among_the_dead(connection: Connection, signer: Signer, tier: str) -> int:
    """Straight into RabbitMQ's queue of dead messages, which the scheduler reads. Answers how many."""
    producer = connection.Producer(auto_declare=False)
    for body, headers, kind, encoding in itertools.islice(kinds(random.Random(7), signer, "anywhere"), MESSAGES):
        producer.publish(
            body,
            exchange=DEAD_EXCHANGE.name,
            routing_key=dead_queue(tier).name,
            headers=headers,
            content_type=kind,
            content_encoding=encoding,
        )
    return MESSAGES


def workers(fabric: Fabric) -> list[Process]:
    started = [fabric.start("worker", tier, name=f"worker-{tier}") for tier in TIERS]
    fabric.until(lambda: all(fabric.info(worker) and " ready." in worker.said for worker in started))
    return started


def all_are_counted(fabric: Fabric, count: int) -> None:
    def counted() -> int:
        return fabric.store(bad_messages.count())

    fabric.until(lambda: counted() >= count, within_s=60 + MESSAGES / 20)
    assert counted() == count


@pytest.mark.timeout(120 + MESSAGES // 4)
@pytest.mark.parametrize("broker", ["valkey", "rabbitmq"])
def test_stop_nobody_and_are_all_counted(new_fabric: Start, broker: str) -> None:
    fabric = new_fabric(broker, {place.name: {"tier": place.tier} for place in DEPLOYMENTS})
    processes = [fabric.scheduler(), *workers(fabric)]
    jobs: list[str] = []
    count = MESSAGES * len(DEPLOYMENTS)
    with Connection(fabric.broker_url) as connection:
        channel = connection.default_channel
        for place in DEPLOYMENTS:
            queue(place)(channel).declare()
        for numbers in zip(*(put(connection, fabric.signer, place) for place in DEPLOYMENTS), strict=True):
            if numbers[0] % 100 == 0:
                jobs += [fabric.accept(place.name)[0] for place in DEPLOYMENTS]
        assert {end.state for end in fabric.ended(jobs)} == {"succeeded"}
        all_are_counted(fabric, count)
        if fabric.rabbitmq:
            # Now that it is empty: of more than 10,000 at once RabbitMQ keeps the newest.
            count += put_among_the_dead(connection, fabric.signer, "gpu")
            all_are_counted(fabric, count)
    assert fabric.store(bad_messages.kept_count()) == bad_messages.KEPT, "the newest"
    assert [process.popen.poll() for process in processes] == [None] * 4
    after = [job for place in DEPLOYMENTS for job in fabric.accept(place.name, 5)]
    assert {end.state for end in fabric.ended(after)} == {"succeeded"}
