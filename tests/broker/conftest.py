"""A whole way without a gateway: real schedulers and workers between a store and a broker."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest
import yaml
from redis.exceptions import RedisError

from fabric.contracts.completion import Completion
from fabric.contracts.job import JobSpec
from fabric.contracts.job_seals import HomeSeals, ReadingZones
from fabric.contracts.secret import Secrets
from fabric.contracts.signed import Signer
from fabric.contracts.worker import WorkerInfo
from fabric.store import Store, reads, transitions
from fabric.store.transitions import NewJob

if TYPE_CHECKING:
    from tests.conftest import RabbitMQ, Valkey

BROKERS = ("valkey", "rabbitmq")
#: How long anything may take here before it counts as lost. Never a measure.
PATIENCE_S = 60.0
_numbers: Iterator[int] = itertools.count(time.time_ns())


@dataclass
class Process:
    """One process of the fabric. Its log is in a file."""

    name: str
    popen: subprocess.Popen[bytes]
    log: Path

    def signal(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait()

    def stop(self) -> int:
        """SIGTERM; answers the exit status."""
        self.popen.terminate()
        return self.popen.wait(timeout=PATIENCE_S)

    @property
    def running(self) -> bool:
        return self.popen.poll() is None

    @property
    def said(self) -> str:
        return self.log.read_text()


_SECRET = "s" * 32
_SIGNER = Signer.of(Secrets([_SECRET]))
_HOME = HomeSeals(Secrets([_SECRET]))
_ZONES = ReadingZones(frozenset({"local"}), frozenset({"cloud"}))


@dataclass
class Fabric:
    """``deployments``: name -> what it says beside that. They all serve a model of their own name."""

    folder: Path
    valkey: Valkey
    broker_url: str
    deployments: dict[str, dict[str, Any]]
    settings: dict[str, str] = field(default_factory=dict)
    processes: list[Process] = field(default_factory=list)
    rabbitmq: RabbitMQ | None = None

    def __post_init__(self) -> None:
        models = [
            {"name": name, "deployments": [{"engine": "mock", "tier": "cpu", "slots": 8, "name": name, **values}]}
            for name, values in self.deployments.items()
        ]
        self.config = self.folder / "fabric.yaml"
        self.config.write_text(yaml.safe_dump({"models": models}))
        self.store = Store(self.valkey.url)
        self._seen = "0"
        self._ends: dict[str, list[Completion]] = {}

    @property
    def environ(self) -> dict[str, str]:
        """For the fabric's processes and for Celery's tools."""
        others = {name: value for name, value in os.environ.items() if not name.startswith("FABRIC_")}
        return others | {
            "FABRIC_CONFIG": str(self.config),
            "FABRIC_DATA_DIR": str(self.folder),
            "FABRIC_REDIS_URL": self.valkey.url,
            "FABRIC_BROKER_URL": self.broker_url,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "FABRIC_SECRET": _SECRET,
            **self.settings,
        }

    def start(self, *command: str, name: str = "") -> Process:
        """A process of the fabric by its command line."""
        return self.run(sys.executable, "-m", "fabric.cli", *command, name=name or command[0])

    def run(self, *command: str, name: str) -> Process:
        log = self.folder / f"{len(self.processes)}-{name}.log"
        with log.open("wb") as output:
            popen = subprocess.Popen(
                command, env=self.environ, cwd=self.folder, stdout=output, stderr=output, stdin=subprocess.DEVNULL
            )
        self.processes.append(Process(name, popen, log))
        return self.processes[-1]

    @property
    def signer(self) -> Signer:
        """The scheduler's."""
        return _SIGNER

    def scheduler(self) -> Process:
        return self.start("scheduler")

    def worker(self, name: str = "worker") -> Process:
        """Returns when the scheduler could send it jobs and the broker delivers them."""
        process = self.start("worker", "cpu", "--name", name, name=name)
        self.until(lambda: self.info(process) is not None and " ready." in process.said)
        return process

    def info(self, worker: Process) -> WorkerInfo | None:
        infos = self.store(transitions.room()).workers
        return next((info for info in infos if info.pid == worker.popen.pid), None)

    def accept(self, model: str, count: int = 1, *, content: str = "hello", **fields: Any) -> list[str]:
        """Ids in order. Of class ``standard`` unless told otherwise."""
        values = {"endpoint": "/v1/chat/completions", "model": model, "priority": "standard"} | fields
        specs = [JobSpec(id=f"job_{next(_numbers):026}", **values) for _ in range(count)]
        body = {"messages": [{"role": "user", "content": content}]}
        payload = orjson.dumps({"endpoint": values["endpoint"], "body": body, "stream": False})
        for start in range(0, count, 500):
            chunk = specs[start : start + 500]
            self.store(transitions.accept([NewJob(spec, _HOME.payload(spec, payload, _ZONES)) for spec in chunk]))
        return [spec.id for spec in specs]

    @staticmethod
    def opened(record: reads.JobRecord) -> bytes:
        """Its answer."""
        assert record.result is not None
        return _HOME.answer(record.spec.tenant, record.spec.id, record.result)

    def lines(self, model: str, count: int) -> list[str]:
        """Jobs as a batch has them."""
        return self.accept(model, count, priority="batch", batch_id="batch_1")

    def ended(self, jobs: Iterable[str], within_s: float = PATIENCE_S) -> list[Completion]:
        """Waits until all have ended; each of them must have done so once."""
        wanted, until = set(jobs), time.monotonic() + within_s
        while not wanted <= self._ends.keys():
            left = wanted - self._ends.keys()
            assert time.monotonic() < until, f"{len(left)} of {len(wanted)} jobs haven't ended\n{self.logs()}"
            self._look(block_ms=500)
        self._look()
        assert [job for job in wanted if len(self._ends[job]) != 1] == []
        return [self._ends[job][0] for job in jobs]

    def _look(self, block_ms: int | None = None) -> None:
        try:
            streams = self.store.redis.xread({reads.COMPLETIONS: self._seen}, block=block_ms)
        except (RedisError, OSError):  # the test has killed it
            time.sleep(0.05)
            return
        for _, entries in streams:
            for entry_id, fields in entries:
                self._seen = entry_id.decode()
                end = reads.completion(entry_id, fields)
                self._ends.setdefault(end.spec.id, []).append(end)

    def record(self, job: str) -> reads.JobRecord:
        record = self.store(reads.job(job))
        assert record is not None
        return record

    def until(self, condition: Callable[[], object], within_s: float = PATIENCE_S) -> None:
        until = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < until, f"it never came true\n{self.logs()}"
            time.sleep(0.02)

    def now_ms(self) -> int:
        """On the store's clock, which counts."""
        seconds, microseconds = self.store.redis.time()
        return int(seconds * 1000 + microseconds // 1000)

    def logs(self) -> str:
        return "\n".join(f"--- {p.name} ({p.popen.poll()})\n{p.said[-3000:]}" for p in self.processes)

    def close(self) -> None:
        for process in self.processes:
            process.kill()
        self.store.close()


Start = Callable[..., Fabric]


@pytest.fixture(scope="session")
def start_fabric(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    new_valkey: Callable[[], Valkey],
) -> Iterator[Start]:
    """``start_fabric("rabbitmq", {"quick": {…}})``: a store and a broker, and no processes yet."""
    fabrics: list[Fabric] = []

    def start(broker: str, deployments: dict[str, dict[str, Any]], **settings: str) -> Fabric:
        valkey = new_valkey()
        rabbitmq = None
        if broker == "rabbitmq":
            rabbitmq = request.getfixturevalue("rabbitmq_server")
            if rabbitmq.process is None:
                rabbitmq.start()
        url = rabbitmq.url if rabbitmq else valkey.broker_url
        fabric = Fabric(tmp_path_factory.mktemp("fabric"), valkey, url, deployments, settings, rabbitmq=rabbitmq)
        fabrics.append(fabric)
        return fabric

    yield start
    for fabric in fabrics:
        fabric.close()


@pytest.fixture
def new_fabric(start_fabric: Start) -> Iterator[Start]:
    """The same, and its processes end with the test."""
    fabrics: list[Fabric] = []

    def start(*arguments: Any, **settings: str) -> Fabric:
        fabrics.append(start_fabric(*arguments, **settings))
        return fabrics[-1]

    yield start
    for fabric in fabrics:
        fabric.close()
