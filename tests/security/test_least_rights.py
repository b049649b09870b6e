"""A whole fabric under users with the least rights, and what one of them is refused."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import redis
from amqp.exceptions import AccessRefused
from kombu import Connection
from redis.exceptions import NoPermissionError

from fabric.security import ROLES
from fabric.security.roles import ADMIN
from tests.conftest import free_ports
from tests.security.conftest import ROOT, chat, lines_of, until

if TYPE_CHECKING:
    from tests.security.conftest import House, NewHouse


def place(tier: str, name: str, **values: Any) -> dict[str, Any]:
    options = {"latency_ms": 1, **values.pop("options", {})}
    return {"engine": "mock", "tier": tier, "name": name, "slots": 8, "options": options, **values}


MODELS: list[dict[str, Any]] = [
    {"name": "near", "deployments": [place("cpu", "near")]},
    {"name": "far", "deployments": [place("cloud", "far")]},
    {"name": "slow", "deployments": [place("cloud", "slow", options={"latency_ms": 600_000})]},
    {"name": "broken", "deployments": [place("cloud", "broken", options={"fail": 1})]},
    {"name": "moving", "deployments": [place("cloud", "moving-1", options={"fail": 1}), place("cpu", "moving-2")]},
]


@pytest.fixture(scope="module", params=["valkey", "rabbitmq"])
def house(request: pytest.FixtureRequest, new_house: NewHouse) -> Iterator[House]:
    house = new_house(request.param, MODELS)
    yield house.open("cpu", "cloud")
    house.close()


on_valkey = pytest.mark.parametrize("house", ["valkey"], indirect=True)
on_rabbitmq = pytest.mark.parametrize("house", ["rabbitmq"], indirect=True)


class TestAWholeFabric:
    """Everything that it does; ``test_nothing_was_missed`` looks whether anybody was refused anything."""

    def test_answers_of_each_tier(self, house: House) -> None:
        with house.http() as http:
            for model, tier in (("near", "cpu"), ("far", "cloud")):
                answer = http.post("/v1/chat/completions", json=chat(model))
                assert (answer.status_code, answer.headers["x-fabric-tier"]) == (200, tier), house.logs()

    def test_a_stream(self, house: House) -> None:
        with house.http() as http:
            body = chat("far", stream=True, stream_options={"include_usage": True})
            assert http.post("/v1/chat/completions", json=body).text.rstrip().endswith("data: [DONE]")

    def test_a_job_its_events_and_the_lists(self, house: House) -> None:
        with house.http() as http:
            headers = {"Idempotency-Key": f"once-{time.time_ns()}"}
            job = http.post("/v1/jobs", json={"endpoint": "/v1/chat/completions", "body": chat("far")}, headers=headers)
            again = http.post(
                "/v1/jobs", json={"endpoint": "/v1/chat/completions", "body": chat("far")}, headers=headers
            )
            assert again.json()["id"] == job.json()["id"]
            assert "succeeded" in http.get(f"/v1/jobs/{job.json()['id']}/events").text
            for path in ("/v1/jobs", "/v1/tiers", "/metrics", "/v1/usage", "/v1/costs", "/v1/models", "/console"):
                assert http.get(path, follow_redirects=True).status_code == 200, path
            assert http.post("/v1/route", json=chat("moving")).status_code == 200

    def test_a_job_that_runs_and_one_that_waits_are_cancelled(self, house: House) -> None:
        with house.http() as http:
            asked = {"endpoint": "/v1/chat/completions", "body": chat("slow")}
            ids = [http.post("/v1/jobs", json=asked).json()["id"] for _ in range(40)]
            until(lambda: http.get(f"/v1/jobs/{ids[0]}").json()["state"] == "running", house.logs)
            for job in (ids[-1], *ids):
                http.post(f"/v1/jobs/{job}/cancel")
            for job in ids:
                until(lambda job=job: http.get(f"/v1/jobs/{job}").json()["state"] == "cancelled", house.logs)

    def test_a_job_is_parked_replayed_and_dropped(self, house: House) -> None:
        with house.http() as http:
            asked = {"endpoint": "/v1/chat/completions", "body": chat("broken")}
            one, other = (http.post("/v1/jobs", json=asked).json()["id"] for _ in range(2))
            for job in (one, other):
                until(lambda job=job: http.get(f"/v1/jobs/{job}").json()["state"] == "dead", house.logs)
            assert http.post(f"/v1/dead-letters/{one}/replay").status_code in (200, 202)
            http.post(f"/v1/jobs/{one}/cancel")
            until(lambda: http.get(f"/v1/jobs/{one}").json()["state"] == "cancelled", house.logs)
            assert http.delete(f"/v1/dead-letters/{other}").status_code in (200, 204)

    def test_a_job_moves_to_another_tier(self, house: House) -> None:
        with house.http() as http:
            answer = http.post("/v1/chat/completions", json=chat("moving"))
            assert (answer.status_code, answer.headers["x-fabric-tier"]) == (200, "cpu"), house.logs()

    def test_a_batch(self, house: House) -> None:
        line = {"method": "POST", "url": "/v1/chat/completions"}
        rows = [{**line, "custom_id": str(n), "body": chat(("near", "far")[n % 2])} for n in range(40)]
        with house.http() as http:
            content = "\n".join(map(json.dumps, rows)).encode()
            file = http.post("/v1/files", files={"file": ("in.jsonl", content)}, data={"purpose": "batch"}).json()["id"]
            asked = {"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
            batch = http.post("/v1/batches", json=asked).json()["id"]
            done = until(
                lambda: (b := http.get(f"/v1/batches/{batch}").json())["status"] == "completed" and b, house.logs
            )
            output = http.get(f"/v1/files/{done['output_file_id']}/content").text
            assert {row["custom_id"] for row in lines_of(output)} == {str(n) for n in range(40)}

    def test_nothing_was_missed(self, house: House) -> None:
        assert house.denied() == [], house.logs()

    def test_the_workers_health_check_may_look(self, house: House) -> None:
        for tier in ("cpu", "cloud"):
            house.run(
                f"worker-{tier}", sys.executable, str(ROOT / "compose" / "health.py"), "worker", tier, log="health"
            )
        assert [process.wait(timeout=60) for process in house.helpers[-2:]] == [0, 0], house.said("health")
        assert house.denied() == []


class TestCelerysTools:
    def test_flower_as_a_monitor_shows_the_workers(self, house: House) -> None:
        (port,) = free_ports(1)
        flower = ("flower", "--address=127.0.0.1", f"--port={port}", "--read_only=true")
        house.run("monitor", sys.executable, "-m", "celery", "-A", "fabric.broker", *flower, log="flower")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30) as http:

            def shown() -> bool:
                try:
                    return all(name in http.get("/workers").text for name in ("cpu-", "cloud-"))
                except httpx.TransportError:
                    return False

            until(shown, lambda: house.said("flower") + house.logs())
        house.end_helpers()
        assert house.denied() == []

    def test_an_administrator_asks_the_workers(self, house: House) -> None:
        inspect = ("-m", "celery", "-A", "fabric.broker", "inspect", "ping", "--timeout", "6", "--json")
        house.run("admin", sys.executable, *inspect, log="inspect")
        assert house.helpers[-1].wait(timeout=60) == 0, house.said("inspect")
        assert house.said("inspect").count("pong") == 2


def run_script(redis: Any, lua: str) -> Any:
    """A script of one's own, as whoever may load scripts can."""
    return redis.evalsha(redis.script_load(lua), 0)


def hear(redis: Any, command: str, channel: str) -> Any:
    listener = redis.pubsub()
    listener.execute_command(command, channel)
    return listener.parse_response(timeout=30)


#: What whoever has taken over a worker for hosted APIs would try: database, what.
ACROSS: dict[str, tuple[int, Any]] = {
    "take from another tier's queue": (1, lambda r: r.rpop("fabric.cpu.near")),
    "look into another tier's queue": (1, lambda r: r.lrange("fabric.gpu.x", 0, -1)),
    "send another tier work": (1, lambda r: r.lpush("fabric.cpu.near", "{}")),
    "delete another tier's queue": (1, lambda r: r.delete("fabric.cpu.near")),
    "take what another tier's workers have in hand": (1, lambda r: r.hgetall("fabric.unacked.cpu")),
    "the same by a script": (1, lambda r: run_script(r, "return redis.call('RPOP', 'fabric.cpu.near')")),
    "the same in a transaction": (1, lambda r: r.pipeline().rpop("fabric.cpu.near").execute()),
    "tell other workers to stop": (1, lambda r: r.publish("/1.celery.pidbox", "{}")),
    "read what has ended": (0, lambda r: r.xrange("fabric:completions")),
    "let go of what has ended": (0, lambda r: r.xtrim("fabric:completions", maxlen=0)),
    "become a recorder": (0, lambda r: r.xgroup_create("fabric:completions", "mine", "0")),
    "read answers as they are streamed": (0, lambda r: r.lrange("fabric:events:job_1", 0, -1)),
    "hear answers": (0, lambda r: hear(r, "SUBSCRIBE", "fabric:gateway:x")),
    "hear everything": (0, lambda r: hear(r, "PSUBSCRIBE", "*")),
    "read a whole job": (0, lambda r: r.hgetall("fabric:job:job_1")),
    "change what a job is asked": (0, lambda r: r.set("fabric:payload:job_1", "x")),
    "see who waits": (0, lambda r: r.zrange("fabric:live", 0, -1)),
    "look into the backlog": (0, lambda r: r.zrange("fabric:lane:interactive|default|near", 0, -1)),
    "delete the backlog": (0, lambda r: r.delete("fabric:lane:interactive|default|near")),
    "delete the backlog by a script": (0, lambda r: run_script(r, "return redis.call('DEL', 'fabric:live')")),
    "look for keys": (0, lambda r: r.keys("*")),
    "walk through the keys": (0, lambda r: r.scan(0)),
    "read what requests were sent before": (0, lambda r: r.get("fabric:idempotency:7:default:x")),
    "see a tenant's jobs": (0, lambda r: r.zrevrange("fabric:jobs:default", 0, -1)),
    "read policies": (0, lambda r: r.hgetall("fabric:policies")),
    "move the audit trail's head": (0, lambda r: r.hset("fabric:audit:head", "seq", 9)),
    "write elsewhere": (0, lambda r: r.set("anything", "x")),
    "copy a payload": (0, lambda r: r.copy("fabric:payload:job_1", "fabric:worker:x")),
}


@on_valkey
@pytest.mark.parametrize("what", ACROSS)
def test_a_worker_for_hosted_apis_may_not(house: House, what: str) -> None:
    db, attempt = ACROSS[what]
    refused = pytest.raises((NoPermissionError, redis.ResponseError), match=r"(?i)permission")
    with house.redis("worker-cloud", db) as as_worker, refused:
        attempt(as_worker)
    assert {entry["username"] for entry in house.denied()} == {"fabric-worker-cloud"}


@on_valkey
def test_it_may_look_at_its_own_queue(house: House) -> None:
    with house.redis("worker-cloud", 1) as as_worker:
        assert as_worker.llen("fabric.cloud.far") == 0


#: What is for administrators alone.
POWERS: tuple[tuple[str, ...], ...] = (
    ("FLUSHALL",),
    ("FLUSHDB",),
    ("CONFIG", "GET", "*"),
    ("CONFIG", "SET", "maxmemory", "1"),
    ("KEYS", "*"),
    ("SCAN", "0"),
    ("SCRIPT", "FLUSH"),
    ("SCRIPT", "KILL"),
    ("EVAL", "return 1", "0"),
    ("FUNCTION", "FLUSH"),
    ("ACL", "LIST"),
    ("ACL", "SETUSER", "fabric-monitor", "+@all"),
    ("CLIENT", "LIST"),
    ("CLIENT", "KILL", "TYPE", "normal"),
    ("MONITOR",),
    ("SHUTDOWN", "NOSAVE"),
    ("REPLICAOF", "NO", "ONE"),
    ("SAVE",),
    ("RENAME", "fabric:live", "x"),
    ("MIGRATE", "127.0.0.1", "1", "fabric:live", "0", "1"),
    ("DUMP", "fabric:live"),
    ("SWAPDB", "0", "1"),
    ("MODULE", "LIST"),
)


@on_valkey
@pytest.mark.parametrize("role", [role.name for role in ROLES if role is not ADMIN])
def test_no_role_has_an_administrators_powers(house: House, role: str) -> None:
    with house.redis(role) as as_role:
        for command in POWERS:
            with pytest.raises(NoPermissionError):
                as_role.execute_command(*command)
    house.denied()
    with house.redis("admin") as admin:
        assert admin.execute_command("CONFIG", "GET", "maxmemory")


@on_valkey
def test_who_has_no_user_gets_nothing(house: House) -> None:
    port = int(house.role("gateway")["FABRIC_REDIS_URL"].rpartition(":")[2].partition("/")[0])
    for url in (f"redis://127.0.0.1:{port}/0", f"redis://fabric-gateway:guessed@127.0.0.1:{port}/0"):
        with redis.Redis.from_url(url) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.get("fabric:live")
    house.denied()


@on_rabbitmq
class TestRabbitMQ:
    @pytest.fixture
    def channel(self, request: pytest.FixtureRequest, house: House) -> Iterator[Any]:
        """Of the cloud's worker, or the role that the test names."""
        with Connection(house.role(getattr(request, "param", "worker-cloud"))["FABRIC_BROKER_URL"]) as connection:
            yield connection.default_channel

    @pytest.mark.parametrize(
        "attempt",
        [
            lambda channel: channel.basic_get("fabric.cpu.near"),
            lambda channel: channel.basic_consume("fabric.cpu.near", callback=print),
            lambda channel: channel.basic_get("fabric.cpu.dead"),
            lambda channel: channel.queue_purge("fabric.cpu.near"),
            lambda channel: channel.queue_delete("fabric.cpu.near"),
            lambda channel: channel.queue_declare("anything"),
            lambda channel: channel.queue_bind("fabric.cpu.near", "fabric.dead", "x"),
            lambda channel: send(channel, "", "fabric.cpu.near"),
            lambda channel: send(channel, "", "fabric.cloud.far"),
            lambda channel: send(channel, "celery.pidbox", ""),
            lambda channel: send(channel, "celeryev", "anything.else"),
        ],
    )
    def test_on_rabbitmq_it_may_not(self, channel: Any, attempt: Any) -> None:
        with pytest.raises(AccessRefused):
            attempt(channel)

    def test_on_rabbitmq_it_may_read_its_own_queue(self, channel: Any) -> None:
        assert channel.basic_get("fabric.cloud.far") is None

    @pytest.mark.parametrize("channel", ["monitor"], indirect=True)
    def test_a_monitor_reads_no_queue_and_sends_nothing(self, channel: Any) -> None:
        with pytest.raises(AccessRefused):
            channel.basic_get("fabric.cloud.far")
        with pytest.raises(AccessRefused):
            send(channel.connection.channel(), "", "fabric.cloud.far")

    def test_gateway_and_recorder_have_no_user_there(self, house: House) -> None:
        for role in ("gateway", "recorder"):
            assert "FABRIC_BROKER_URL" not in house.role(role)


def send(channel: Any, exchange: str, routing_key: str) -> None:
    """RabbitMQ refuses what is sent by closing the channel: the next question finds out."""
    channel.basic_publish(
        channel.prepare_message("{}", content_encoding="utf-8"), exchange=exchange, routing_key=routing_key
    )
    channel.basic_get("fabric.cloud.far")
