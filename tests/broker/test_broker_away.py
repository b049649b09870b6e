"""A broker that is away: the door says so soon, stays alive, and opens again by itself."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from fabric.broker import make_app
from fabric.ledger import upgrade
from fabric.store import Store
from scheduler.broker_watch import BrokerWatch
from tests.broker.conftest import BROKERS, Fabric
from tests.conftest import RabbitMQ, Valkey, free_ports

if TYPE_CHECKING:
    from tests.broker.conftest import Start

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "away", "messages": [{"role": "user", "content": "hi"}]}


class TestLooking:
    @pytest.fixture(params=BROKERS)
    def server(self, request: pytest.FixtureRequest) -> Valkey | RabbitMQ:
        server: Valkey | RabbitMQ = request.getfixturevalue(request.param)
        return server

    @pytest.fixture
    def watch(self, server: Valkey | RabbitMQ, store: Store) -> Iterator[BrokerWatch]:
        watch = BrokerWatch(make_app(server.broker_url if isinstance(server, Valkey) else server.url), store)
        yield watch
        watch.close()

    def test_one_that_was_killed_and_comes_back(self, server: Valkey | RabbitMQ, watch: BrokerWatch) -> None:
        assert watch.look()
        assert watch.look()
        server.kill()
        assert not watch.look()
        assert not watch.look()
        server.start()
        assert watch.look()

    def test_one_that_is_frozen(self, rabbitmq: RabbitMQ, store: Store) -> None:
        watch = BrokerWatch(make_app(rabbitmq.url), store)
        assert watch.look()
        assert rabbitmq.process is not None
        rabbitmq.process.send_signal(signal.SIGSTOP)
        try:
            assert not watch.look(), "an open connection"
            assert not watch.look(), "and none yet"
        finally:
            rabbitmq.process.send_signal(signal.SIGCONT)
        while not watch.look():
            pass
        watch.close()


@pytest.mark.parametrize("broker", BROKERS)
def test_the_door_is_shut_until_it_is_back(new_fabric: Start, broker: str) -> None:
    (port,) = free_ports(1)
    fabric: Fabric = new_fabric(broker, {"away": {"slots": 4}})
    upgrade(f"sqlite:///{fabric.folder / 'ledger.sqlite3'}")
    fabric.settings["FABRIC_DATABASE_URL"] = f"sqlite:///{fabric.folder / 'ledger.sqlite3'}"
    api = fabric.start("api", "--port", str(port))
    fabric.scheduler()
    fabric.worker()
    server: Valkey | RabbitMQ = fabric.rabbitmq or fabric.valkey
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as http:
        fabric.until(lambda: " listens on " in api.said)
        assert http.post(CHAT, json=BODY).status_code == 200
        # A quorum queue that is younger than a second when RabbitMQ 3.10 is killed never comes back.
        made = time.monotonic()
        fabric.until(lambda: time.monotonic() - made > 2)
        server.kill()
        fabric.until(lambda: http.get("/health/ready").status_code == 503)
        ready, refused = http.get("/health/ready"), http.post(CHAT, json=BODY)
        job = http.post("/v1/jobs", json={"endpoint": CHAT, "body": BODY})
        assert http.get("/health/live").status_code == 200
        assert ready.json()["parts"]["broker" if fabric.rabbitmq else "store"] == "away"
        for answer in (ready, refused, job):
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.elapsed.total_seconds() < 10  # 2 s, on a machine that does nothing else
        server.start()
        fabric.until(lambda: http.get("/health/ready").status_code == 200)
        assert http.post(CHAT, json=BODY).status_code == 200
