"""Prompts, answers, keys and secrets where RabbitMQ carries the messages: in nothing that it carries, keeps, shows."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import pytest
from kombu import Connection, Exchange, Queue

from tests.conftest import free_ports
from tests.security.conftest import until

if TYPE_CHECKING:
    from tests.conftest import RabbitMQ
    from tests.security.conftest import House, NewHouse
    from tests.security.outside import Outside

PROMPT, ANSWER, PROVIDER_KEY = "CANARYPROMPT", "CANARYANSWER", "CANARYPROVIDERKEY"
SECRET = "CANARYSECRET" + "0" * 40
WAYS = ("fine", "e400", "e500", "refusal", "cut", "truncated")
#: What the management plugin tells whoever may ask.
PAGES = ("overview", "connections", "channels", "consumers", "exchanges", "queues", "bindings", "users", "definitions")


def models(url: str) -> list[dict[str, Any]]:
    hosted = [
        {
            "name": how,
            "deployments": [
                {
                    **{"name": how, "engine": "openai", "tier": "cloud", "base_url": f"{url}/v1", "model": how},
                    **{"api_key_env": "SOME_KEY", "breaker": {"failures": 10_000, "minimum": 10_000}},
                }
            ],
        }
        for how in WAYS
    ]
    slow = {"engine": "mock", "tier": "cpu", "name": "slow", "options": {"latency_ms": 600_000}}
    return [*hosted, {"name": "slow", "deployments": [slow]}]


@pytest.fixture(scope="module")
def server(new_rabbitmq: Callable[..., RabbitMQ]) -> tuple[RabbitMQ, str]:
    """With the management plugin, and where that is."""
    (port,) = free_ports(1)
    conf = (f"management.tcp.port = {port}", "management.tcp.ip = 127.0.0.1")
    return new_rabbitmq(plugins=("rabbitmq_management",), conf=conf), f"http://127.0.0.1:{port}/api"


@pytest.fixture(scope="module")
def house(new_house: NewHouse, outside: Outside, server: tuple[RabbitMQ, str]) -> Iterator[House]:
    variables = {"SOME_KEY": PROVIDER_KEY, "FABRIC_SECRET": SECRET, "FABRIC_LOG_LEVEL": "DEBUG"}
    house = new_house("rabbitmq", models(outside.url), rabbitmq=server[0], **variables)
    yield house
    house.close()


def body(model: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": f"tell {PROMPT}"}]}


def drive(http: httpx.Client, house: House) -> None:
    """What goes well, what goes wrong, and a worker that dies with a prompt in its hands."""
    for how in WAYS:
        for stream in (False, True):
            http.post("/v1/chat/completions", json={**body(how), "stream": stream, "fabric": {"deadline_s": 20}})
    asked = {"endpoint": "/v1/chat/completions", "body": body("slow")}
    job_id = http.post("/v1/jobs", json=asked).json()["id"]

    def job() -> Any:
        return http.get(f"/v1/jobs/{job_id}").json()

    until(lambda: job()["state"] == "running", house.logs)
    house.processes["worker-cpu"].send_signal(signal.SIGKILL)
    house.processes["worker-cpu"].wait()
    house.start("worker-cpu", "worker", "cpu")
    until(lambda: job()["attempts"][1:], house.logs)
    http.post(f"/v1/jobs/{job_id}/cancel")


@pytest.fixture(scope="module")
def seen(house: House, server: tuple[RabbitMQ, str]) -> dict[str, str]:
    """Where somebody might read -> everything that is there."""
    rabbitmq, api = server
    admin = house.role("admin")["FABRIC_BROKER_URL"]
    traced: list[str] = []
    with Connection(admin) as connection:
        channel = connection.default_channel
        everything = Queue("traced", Exchange("amq.rabbitmq.trace", type="topic", passive=True), routing_key="#")
        everything(channel).declare()
        # Each message that is sent or delivered, its headers in the copy's.
        control = [str(rabbitmq.programs / "rabbitmqctl"), "trace_on", "-p", "house"]
        subprocess.run(control, env=rabbitmq._environ, check=True, capture_output=True)
        house.open("cpu", "cloud")
        with house.http() as http:
            drive(http, house)
            until(lambda: http.get("/v1/usage").json()["data"], house.logs)
        user = urlsplit(admin)
        with httpx.Client(auth=(user.username or "", user.password or ""), trust_env=False, timeout=60) as pages:
            found = {page: pages.get(f"{api}/{page}") for page in PAGES}
            assert {answer.status_code for answer in found.values()} == {200}
            # Whatever lies in a queue at this moment.
            for queue in found["queues"].json():
                where = f"{api}/queues/house/{queue['name']}/get"
                want = {"count": 1000, "ackmode": "ack_requeue_true", "encoding": "auto"}
                if queue["name"] != "traced":
                    found[queue["name"]] = pages.post(where, json=want)
        while (message := everything(channel).get()) is not None:
            traced.append(f"{message.headers} {message.body!r}")
            message.ack()
    texts = {name: answer.text for name, answer in found.items()}
    disk = [path.read_bytes() for path in rabbitmq.folder.rglob("*") if path.is_file()]
    return texts | {"traffic": "\n".join(traced), "disk and log": b"\n".join(disk).decode("latin-1")}


@pytest.mark.parametrize("canary", [PROMPT, ANSWER, PROVIDER_KEY, SECRET])
def test_nowhere(seen: dict[str, str], canary: str) -> None:
    assert [place for place, text in seen.items() if canary in text] == []


def test_no_key_of_the_fabrics(seen: dict[str, str], house: House) -> None:
    """Of zones, of the scheduler, of users in Redis and RabbitMQ."""
    roles = ("gateway", "scheduler", "recorder", "worker-cpu", "worker-cloud")
    held = [value for role in roles for name, value in house.role(role).items() if name != "FABRIC_SECRET"]
    private = {part.partition(":")[2] for value in held if "://" not in value for part in value.split(",")}
    private |= {urlsplit(value).password or "" for value in held if "://" in value}
    assert len(private) > 8 and "" not in private
    assert [place for place, text in seen.items() if any(key in text for key in private)] == []


def test_all_of_it_happened(seen: dict[str, str], outside: Outside) -> None:
    """Otherwise there was nothing to find."""
    assert set(outside.served) == set(WAYS)
    assert "fabric.run" in seen["traffic"] and "job_" in seen["traffic"] and "task-received" in seen["traffic"]
    assert {queue["name"] for queue in json.loads(seen["queues"])} >= {f"fabric.cloud.{how}" for how in WAYS}
    assert "job_" in seen["disk and log"]
