"""Several workers at once: real processes of the fabric on one store and one broker, some on machines of their own.

A machine is a network namespace: it has its own address, and a cable (a veth pair) to the one with store and broker.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from sqlalchemy import create_engine, select

from fabric.ledger.tables import usage

if TYPE_CHECKING:
    from tests.broker.conftest import Fabric, Process

#: What an engine takes for an answer, and how many a worker asks of it at once.
LATENCY_S = 0.2
SLOTS = 8
REDIS_PORT = 6379
ENGINE_PORT = 9000
MODEL = "shared"
_numbers = itertools.count()


@pytest.fixture
def new_fabric(new_valkey: Callable[..., Any], tmp_path: Path) -> Iterator[Callable[..., Fabric]]:
    """``new_fabric({"name": {…}})``: a store, and no processes yet. They end with the test."""
    from tests.broker.conftest import Fabric

    made: list[Fabric] = []

    def start(deployments: dict[str, dict[str, Any]], **settings: str) -> Fabric:
        valkey = new_valkey()
        made.append(Fabric(tmp_path, valkey, valkey.broker_url, deployments, settings))
        return made[-1]

    yield start
    for fabric in made:
        fabric.close()


def ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"


@pytest.fixture(scope="session")
def may_make_machines() -> None:
    """Whether this machine lets us make network namespaces and lay cables between them."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root (CAP_NET_ADMIN and CAP_SYS_ADMIN)")
    name = f"fabric-{os.getpid()}-try"
    try:
        for command in (
            ["ip", "netns", "add", name],
            ["ip", "netns", "exec", name, "true"],
            ["ip", "-n", name, "link", "add", "x", "type", "veth", "peer", "name", "y"],
        ):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"no network namespaces here: `{' '.join(command[:3])}` says {done.stderr.strip()!r}")
    except FileNotFoundError:
        pytest.skip("`ip` isn't installed: apt-get install iproute2")
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


@dataclass
class Machine:
    """``name``: of its network namespace. ``cable``: the end of its cable at the hub."""

    name: str
    address: str
    hub: str  #: the hub's address, seen from here
    cable: str
    folder: Path

    @property
    def prefix(self) -> tuple[str, ...]:
        """Of a command that runs here; what runs has the pid that was started."""
        return ("ip", "netns", "exec", self.name)

    @property
    def ran(self) -> Counter[str]:
        """What its engine was asked, and how often, as the engine says."""
        return Counter((self.folder / f"{self.name}.engine").read_text().splitlines())


@dataclass
class Site:
    """One store and one broker on a machine of their own, with schedulers, gateway and recorder; two machines for
    workers, each with an engine."""

    fabric: Fabric
    hub: str
    machines: tuple[Machine, Machine]
    url: str
    contents: dict[str, str] = field(default_factory=dict)

    def worker(self, machine: Machine) -> Process:
        """Joins by being started; returns when the fabric counts it."""
        fabric = self.fabric
        rabbitmq = fabric.rabbitmq
        broker = f"redis://{machine.hub}:{REDIS_PORT}/1" if rabbitmq is None else rabbitmq.url_at(machine.hub)
        variables = (f"FABRIC_REDIS_URL=redis://{machine.hub}:{REDIS_PORT}/0", f"FABRIC_BROKER_URL={broker}")
        command = ("-m", "fabric.cli", "worker", "gpu", "--name", machine.name)
        process = fabric.run(*machine.prefix, "env", *variables, sys.executable, *command, name=machine.name)
        fabric.until(lambda: fabric.info(process) is not None and " ready." in process.said)
        return process

    def ask(self, count: int) -> list[str]:
        """Ids of new jobs, each with a content of its own."""
        jobs: list[str] = []
        for _ in range(count):
            content = f"question {next(_numbers)}"
            jobs += self.fabric.accept(MODEL, content=content)
            self.contents[jobs[-1]] = content
        return jobs

    def ran(self, job: str) -> int:
        """How often an engine began it."""
        return sum(machine.ran[self.contents[job]] for machine in self.machines)

    def rows(self, jobs: list[str]) -> dict[str, list[Any]]:
        """The ledger's rows of each job, by attempt. Waits until all are recorded."""
        ledger = create_engine(f"sqlite:///{self.fabric.folder / 'ledger.sqlite3'}")

        def read() -> dict[str, list[Any]]:
            query = select(usage).where(usage.c.job_id.in_(jobs)).order_by(usage.c.attempt)
            found: dict[str, list[Any]] = {job: [] for job in jobs}
            with ledger.connect() as connection:
                for row in connection.execute(query):
                    found[row.job_id].append(row)
            return found

        self.fabric.until(lambda: all(any(row.requests for row in rows) for rows in read().values()))
        try:
            return read()
        finally:
            ledger.dispose()

    def shown(self) -> set[int]:
        """Pids of the workers in ``GET /v1/workers``."""
        return {worker["pid"] for worker in httpx.get(f"{self.url}/v1/workers", timeout=30).json()["data"]}

    def slots(self) -> int:
        """All slots in ``GET /metrics``."""
        return round(sum(self._metric("fabric_worker_slots{")))

    def fenced(self) -> int:
        """Outcomes that were refused as late."""
        return round(sum(self._metric("fabric_fenced_commits_total ")))

    def _metric(self, start: str) -> list[float]:
        text = httpx.get(f"{self.url}/metrics", timeout=30).text
        return [float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(start)]

    def status(self) -> str:
        """What ``fabric status`` prints."""
        command = [sys.executable, "-m", "fabric.cli", "status"]
        environ = self.fabric.environ | {"FABRIC_URL": self.url}
        return subprocess.run(command, env=environ, capture_output=True, text=True, check=True, timeout=60).stdout

    def cut(self, machine: Machine) -> None:
        ip("-n", self.hub, "link", "set", machine.cable, "down")

    def mend(self, machine: Machine) -> None:
        ip("-n", self.hub, "link", "set", machine.cable, "up")


@pytest.fixture(scope="module", params=["valkey", "rabbitmq"])
def site(
    request: pytest.FixtureRequest,
    may_make_machines: None,
    new_valkey: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Site]:
    """Without workers. Each test stops those that it starts."""
    from tests.broker.conftest import Fabric

    folder = tmp_path_factory.mktemp("site")
    with ExitStack() as stack:
        hub = _namespace(stack, "hub")
        machines = (_machine(stack, hub, 1, folder), _machine(stack, hub, 2, folder))
        at_hub = ("ip", "netns", "exec", hub)
        network = ("--port", str(REDIS_PORT), "--bind", *(m.hub for m in machines), "--protected-mode", "no")
        valkey = new_valkey(prefix=at_hub, options=network)
        rabbitmq = None
        if request.param == "rabbitmq":
            rabbitmq = request.getfixturevalue("new_rabbitmq")(prefix=at_hub, address="0.0.0.0")
            stack.callback(rabbitmq.close)
        engine = {"engine": "openai", "tier": "gpu", "base_url": f"http://127.0.0.1:{ENGINE_PORT}/v1", "model": "m"}
        deployments = {MODEL: {**engine, "slots": SLOTS, "options": {"auth": "none"}}}
        url = rabbitmq.url_at(machines[0].hub) if rabbitmq else valkey.broker_url
        fabric = Fabric(folder, valkey, url, deployments, {"FABRIC_DRAIN_S": "20"}, rabbitmq=rabbitmq)
        stack.callback(fabric.close)
        for machine in machines:
            log = str(folder / f"{machine.name}.engine")
            script = str(Path(__file__).with_name("engine.py"))
            command = (*machine.prefix, sys.executable, script, str(ENGINE_PORT), log, str(LATENCY_S))
            process = fabric.run(*command, name=f"engine-{machine.name}")
            fabric.until(lambda process=process: "listening" in process.said)
        assert fabric.start("migrate").popen.wait(60) == 0
        fabric.start("recorder")
        fabric.run(*at_hub, sys.executable, "-m", "fabric.cli", "scheduler", name="scheduler")
        api = fabric.start("api", "--port", "0", name="api")
        fabric.until(lambda: "listens on http" in api.said)
        url = api.said.partition("listens on ")[2].split()[0]
        yield Site(fabric, hub, machines, url)


def _namespace(stack: ExitStack, name: str) -> str:
    name = f"fabric-{os.getpid()}-{next(_numbers)}-{name}"
    ip("netns", "add", name)
    stack.callback(ip, "netns", "del", name)
    ip("-n", name, "link", "set", "lo", "up")
    return name


def _machine(stack: ExitStack, hub: str, number: int, folder: Path) -> Machine:
    """Joined to the hub by a network of two. Nobody else sees the addresses."""
    name = _namespace(stack, f"worker{number}")
    machine = Machine(name, f"10.0.{number}.2", f"10.0.{number}.1", f"to{number}", folder)
    ip("-n", hub, "link", "add", machine.cable, "type", "veth", "peer", "name", "eth0", "netns", name)
    for namespace, address, end in ((hub, machine.hub, machine.cable), (name, machine.address, "eth0")):
        ip("-n", namespace, "address", "add", f"{address}/24", "dev", end)
        ip("-n", namespace, "link", "set", end, "up")
    return machine
