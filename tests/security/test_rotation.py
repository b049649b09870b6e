"""The secret is changed while work goes on: the four steps of docs/encryption.md, with real processes and callers."""

from __future__ import annotations

import itertools
import json
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from fabric.broker import Sender, make_app
from fabric.contracts.catalog import Deployment
from fabric.contracts.errors import BrokenSeal
from fabric.contracts.job_seals import HomeSeals
from fabric.contracts.message import Chunk
from fabric.contracts.secret import Secrets
from fabric.contracts.signed import Signer
from fabric.contracts.zones import WorkerKeys
from fabric.store import Store, bad_messages, reads
from tests.conftest import free_ports
from tests.security.conftest import until

if TYPE_CHECKING:
    from tests.security.conftest import House, NewHouse

OLD, NEW = "the-old-secret-" * 4, "the-new-secret-" * 4
#: Of gateways there are two: one serves while the other is started anew. What the others do waits as long.
PROCESSES = {
    "gateway": ("api",),
    "gateway-b": ("api",),
    "recorder": ("recorder",),
    "scheduler": ("scheduler",),
    "worker-cpu": ("worker", "cpu"),
    "worker-gpu": ("worker", "gpu"),
}
MODELS: list[dict[str, Any]] = [
    {"name": "near", "deployments": [{"engine": "mock", "tier": "cpu", "name": "near", "options": {"latency_ms": 5}}]},
    # Nobody serves it until the secret has been changed.
    {"name": "later", "deployments": [{"engine": "mock", "tier": "gpu", "options": {"latency_ms": 1}}]},
]


@dataclass
class Rolling:
    """A fabric whose processes are started anew one by one, with other keys."""

    house: House
    ports: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ports = {"gateway": self.house.port, "gateway-b": free_ports(1)[0]}
        (self.house.access / "gateway-b.env").write_text((self.house.access / "gateway.env").read_text())
        for role in PROCESSES:
            self.give(role, OLD)
        self.start(*(role for role in PROCESSES if role != "worker-gpu"))

    def give(self, role: str, secret: str) -> None:
        """As an operator does: the secret itself to gateways and recorders, to the others what
        ``fabric security zone-keys`` prints for them."""
        kept = {name: value for name, value in self.house.role(role).items() if name.endswith("_URL")}
        secrets = Secrets.parse(secret)
        if role.startswith(("gateway", "recorder")):
            kept["FABRIC_SECRET"] = secret
        elif role == "scheduler":
            kept["FABRIC_ZONE_KEYS"] = Signer.of(secrets).dump()
        else:
            kept["FABRIC_ZONE_KEYS"] = WorkerKeys.of(secrets, ["local"]).dump()
        if role in self.ports:
            kept["FABRIC_PORT"] = str(self.ports[role])
        (self.house.access / f"{role}.env").write_text("".join(f"{name}={value}\n" for name, value in kept.items()))

    def printed(self, secret: str, *arguments: str, status: int = 0) -> str:
        """By ``fabric`` where that secret is."""
        environ = self.house.environ("gateway") | {"FABRIC_SECRET": secret}
        ran = subprocess.run(
            [sys.executable, "-m", "fabric.cli", *arguments],
            env=environ,
            cwd=self.house.folder,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert ran.returncode == status, ran.stdout + ran.stderr
        return ran.stdout.strip()

    def start(self, *roles: str) -> None:
        """Returns when they do their work."""
        before = {role: self.readiness(role) for role in roles}
        for role in roles:
            self.house.start(role, *PROCESSES[role])
        for role in roles:
            if role.startswith("worker"):
                until(partial(self.is_ready_again, role, before[role]), self.house.logs)
            if role in self.ports:
                until(partial(self.serves, role), self.house.logs)

    def is_ready_again(self, role: str, before: int) -> bool:
        return self.readiness(role) > before

    def readiness(self, role: str) -> int:
        """How often it has said that it is ready."""
        return self.house.said(role).count(" ready.") if (self.house.folder / f"{role}.log").exists() else 0

    def renew(self, secret: str, *kinds: str) -> None:
        """All of these kinds that run, the twins when the first ones are back."""
        running = [role for role in self.house.processes if role.startswith(kinds)]
        for twins in (False, True):
            roles = [role for role in running if role.endswith("-b") is twins]
            for role in roles:
                self.give(role, secret)
                self.house.processes[role].terminate()
            for role in roles:
                ended = self.house.processes[role].wait(timeout=60)
                assert ended in (0, -signal.SIGTERM), self.house.said(role)
            self.start(*roles)

    def serves(self, role: str) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.ports[role]}/health/ready", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def http(self, key: str) -> Callers:
        return Callers([f"http://127.0.0.1:{port}" for port in self.ports.values()], key)


@dataclass
class Callers:
    """Who asks the next gateway when one is away, or says that it is being stopped."""

    urls: list[str]
    key: str

    def ask(self, method: str, path: str, **how: Any) -> httpx.Response:
        heads = {"authorization": f"Bearer {self.key}", **how.pop("headers", {})}
        for url in itertools.cycle(self.urls):
            try:
                answer = httpx.request(method, url + path, headers=heads, timeout=60, trust_env=False, **how)
            except httpx.TransportError:
                continue
            if answer.status_code != 503:
                return answer
        raise AssertionError

    def json(self, method: str, path: str, **how: Any) -> Any:
        answer = self.ask(method, path, **how)
        assert answer.status_code < 300, (method, path, answer.status_code, answer.text)
        return answer.json()


def body(model: str, word: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": word}]}


def job(model: str, word: str) -> dict[str, Any]:
    return {"endpoint": "/v1/chat/completions", "body": body(model, word), "fabric": {"privacy": "restricted"}}


@dataclass
class Load:
    """Jobs and chats, without end. ``wrong``: answers that weren't as they should be."""

    callers: Callers
    jobs: list[str] = field(default_factory=list)
    chats: int = 0
    wrong: list[str] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        for number in itertools.count():
            if self.ended.wait(0.02):
                return
            # With a key: what is asked once more, since its gateway hung up, runs once.
            made = self._ask("/v1/jobs", job("near", f"word {number}"), f"job-{number}")
            self.jobs += [made["id"]] if made else []
            said = self._ask("/v1/chat/completions", body("near", f"word {number}"), f"chat-{number}")
            self.chats += bool(said and said["choices"][0]["message"]["content"] == ANSWER)

    def _ask(self, path: str, asked: Any, once: str) -> Any:
        answer = self.callers.ask("POST", path, json=asked, headers={"idempotency-key": once})
        if answer.status_code < 300:
            return answer.json()
        self.wrong.append(f"{path} {answer.status_code} {answer.text}")
        return None

    def goes_on(self, count: int = 5) -> None:
        """Returns when some more were taken and answered."""
        jobs, chats = len(self.jobs) + count, self.chats + count
        until(lambda: self.wrong or (len(self.jobs) >= jobs and self.chats >= chats))
        assert self.wrong == []


@pytest.fixture
def rolling(new_house: NewHouse) -> Iterator[Rolling]:
    house = new_house("valkey", MODELS, FABRIC_SECRET=OLD, FABRIC_DRAIN_S="20")
    yield Rolling(house)
    house.close()


@pytest.mark.timeout(600)
def test_step_by_step_nothing_stops_and_nothing_is_lost(rolling: Rolling) -> None:
    house, both = rolling.house, f"{NEW},{OLD}"
    made = json.loads(rolling.printed(OLD, "keys", "create", "--tenant", "acme", "--json"))
    callers = rolling.http(made["key"])
    before = [callers.json("POST", "/v1/jobs", json=job("near", f"before {n}"))["id"] for n in range(5)]
    waiting = [callers.json("POST", "/v1/jobs", json=job("later", f"waits {n}"))["id"] for n in range(5)]
    batch, file_id = a_batch(callers)

    load = Load(callers)
    caller = threading.Thread(target=load.run)
    caller.start()
    try:
        load.goes_on()
        # 1. What is sealed with the new one can be opened.
        rolling.renew(f"{OLD},{NEW}", "gateway", "recorder")
        load.goes_on()
        # 2. Workers hold keys of both, and know both keys of the scheduler.
        rolling.renew(both, "worker")
        load.goes_on()
        # 3. What comes is sealed and signed with the new one.
        rolling.renew(both, "gateway", "recorder", "scheduler")
        load.goes_on()
        # Keys of callers are hashed with it when they are rotated.
        rotated = json.loads(rolling.printed(both, "keys", "rotate", made["id"], "--overlap", "1h", "--json"))
        load.callers.key, old_key = rotated["key"], made["key"]
        until(lambda: callers.ask("GET", "/v1/models").status_code == 200)
        # What was sealed at the very beginning runs only now.
        rolling.give("worker-gpu", both)
        rolling.start("worker-gpu")
        for job_id in (*waiting, *before):
            assert ended(callers, job_id)["content"] == ANSWER
        output = until(lambda: callers.json("GET", f"/v1/batches/{batch}").get("output_file_id"), house.logs)
        assert callers.ask("GET", f"/v1/files/{output}/content").text.count(ANSWER) == 3
        under_the_old = load.jobs[0]
        assert ended(callers, under_the_old)["content"] == ANSWER
        since = len(load.jobs)
        # 4. The old one counts no more.
        rolling.renew(NEW, "gateway", "recorder", "worker", "scheduler")
        load.goes_on()
    finally:
        load.ended.set()
        caller.join()
    assert load.wrong == []
    last = load.jobs[-1]
    assert ended(callers, last)["content"] == ANSWER
    assert {ended(callers, job_id)["content"] for job_id in load.jobs[since:]} == {ANSWER}
    every_one = {*load.jobs, *before, *waiting}
    until(lambda: recorded(rolling) >= every_one, house.logs)
    assert httpx.get(f"{callers.urls[0]}/v1/models", headers=bearer(old_key), trust_env=False).status_code == 401
    assert callers.ask("GET", f"/v1/files/{output}/content").status_code == 200, "written since"
    assert callers.ask("GET", f"/v1/files/{file_id}/content").status_code == 500, "sealed with what is gone"
    opens_nothing(rolling, last)
    assert "FABRIC_SECRET doesn't hold" in rolling.printed(NEW, "audit", "verify", "--json", status=1)
    assert json.loads(rolling.printed(both, "audit", "verify", "--json"))["whole"], "who kept it can check the trail"


ANSWER = " ".join(["tok"] * 8)


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def a_batch(callers: Callers) -> tuple[str, str]:
    """Of lines that wait, too; and its input."""
    lines = [
        json.dumps({"custom_id": f"c{n}", "method": "POST", "url": "/v1/chat/completions", "body": body("later", "x")})
        for n in range(3)
    ]
    file = {"file": ("in.jsonl", "\n".join(lines).encode())}
    sent = callers.json("POST", "/v1/files", files=file, data={"purpose": "batch"})
    asked = {"input_file_id": sent["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    return callers.json("POST", "/v1/batches", json=asked)["id"], sent["id"]


def ended(callers: Callers, job_id: str) -> dict[str, Any]:
    """A job's answer, when it has one."""

    def answer() -> Any:
        found = callers.json("GET", f"/v1/jobs/{job_id}")
        return found if found["state"] not in ("queued", "dispatched", "running") else None

    found = until(answer)
    assert found["state"] == "succeeded", found
    message: dict[str, Any] = found["result"]["choices"][0]["message"]
    return message


def recorded(rolling: Rolling) -> set[str]:
    """Jobs that the ledger has as succeeded, once each."""
    with closing(sqlite3.connect(rolling.house.folder / "ledger.sqlite3")) as ledger:
        rows = ledger.execute(
            "SELECT job_id, count(*) FROM usage WHERE state = 'succeeded' AND requests = 1 GROUP BY job_id"
        ).fetchall()
    assert {count for _, count in rows} == {1}
    return {job_id for job_id, _ in rows}


def opens_nothing(rolling: Rolling, job_id: str) -> None:
    """With the old secret: no answer, no place among the scheduler's messages, no key of workers."""
    store = Store(rolling.house.role("admin")["FABRIC_REDIS_URL"])
    record = store(reads.job(job_id))
    assert record is not None and record.result is not None
    for texts, opens in (([NEW], True), ([OLD], False)):
        seals = HomeSeals(Secrets(texts))
        if opens:
            assert ANSWER.encode() in seals.answer("acme", job_id, record.result)
        else:
            with pytest.raises(BrokenSeal):
                seals.answer("acme", job_id, record.result)
    before = store(bad_messages.count())
    assert before == 0, "nothing of the scheduler's own was refused"
    place = Deployment(name=MODELS[0]["deployments"][0]["name"], engine="mock", tier="cpu")
    app = make_app(rolling.house.role("admin")["FABRIC_REDIS_URL"].replace("/0", "/1"))
    sender = Sender(app, Signer.of(Secrets([OLD])))
    sender.send([(place, Chunk(deployment=place.name, jobs=((job_id, 1),)))])
    sender.close()
    until(lambda: store(bad_messages.count()) == 1, rolling.house.logs)
    store.close()
