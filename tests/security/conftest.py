"""A fabric whose processes each have a user of their own, in Valkey and in RabbitMQ."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import redis
import yaml

from fabric.cli.entry import run
from fabric.ledger import upgrade
from tests.conftest import free_ports
from tests.security.outside import Outside

if TYPE_CHECKING:
    from tests.conftest import RabbitMQ, Valkey

ROOT = Path(__file__).parents[2]
#: How long anything may take here before it counts as lost. Never a measure.
PATIENCE_S = 90.0


def read_env(path: Path) -> dict[str, str]:
    lines = path.read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def until(what: Callable[[], Any], hint: Callable[[], str] = str) -> Any:
    """Looks again and again until ``what`` answers something; for things that have no event."""
    limit = time.monotonic() + PATIENCE_S
    while not (answer := what()):
        assert time.monotonic() < limit, f"it never came true\n{hint()}"
        time.sleep(0.05)
    return answer


@dataclass
class House:
    """Real processes, each started with its role's environment file and nothing else of the fabric's."""

    folder: Path
    access: Path
    valkey: Valkey
    rabbitmq: RabbitMQ | None = None
    variables: dict[str, str] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    helpers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        upgrade(f"sqlite:///{self.folder / 'ledger.sqlite3'}")
        (self.port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"

    def role(self, name: str) -> dict[str, str]:
        return read_env(self.access / f"{name}.env")

    def redis(self, role: str, db: int = 0) -> Any:
        """A connection as the role's user."""
        url = self.role(role)["FABRIC_REDIS_URL"].replace("/0", f"/{db}")
        if ca := self.variables.get("FABRIC_REDIS_CA"):
            url += f"?ssl_ca_certs={ca}"
        return redis.Redis.from_url(url, decode_responses=True)

    def environ(self, role: str) -> dict[str, str]:
        others = {name: value for name, value in os.environ.items() if not name.startswith("FABRIC_")}
        return {
            **others,
            "FABRIC_CONFIG": str(self.folder / "fabric.yaml"),
            "FABRIC_DATA_DIR": str(self.folder),
            "FABRIC_PORT": str(self.port),
            "FABRIC_DRAIN_S": "1",
            "PYTHONPATH": str(ROOT),
            **self.variables,
            **self.role(role),
        }

    def start(self, role: str, *command: str) -> None:
        self.run(role, sys.executable, "-m", "fabric.cli", *command)

    def run(self, role: str, *command: str, log: str = "") -> None:
        """``log``: of something that is run beside the role's process."""
        with (self.folder / f"{log or role}.log").open("ab") as output:
            process = subprocess.Popen(
                command, env=self.environ(role), cwd=self.folder, stdout=output, stderr=output, stdin=subprocess.DEVNULL
            )
        if log:
            self.helpers.append(process)
        else:
            self.processes[role] = process

    def open(self, *tiers: str) -> House:
        """Everything runs, and the API takes jobs."""
        self.start("gateway", "api")
        self.start("scheduler", "scheduler")
        self.start("recorder", "recorder")
        for tier in tiers:
            self.start(f"worker-{tier}", "worker", tier)
        until(self._ready, self.logs)
        return self

    def _ready(self) -> bool:
        for role, process in self.processes.items():
            assert process.poll() is None, f"{role} ended\n{self.logs()}"
        workers = [role for role in self.processes if role.startswith("worker-")]
        if not all(" ready." in self.said(role) for role in workers):
            return False
        try:
            return httpx.get(f"{self.url}/health/ready", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def said(self, role: str) -> str:
        return (self.folder / f"{role}.log").read_text("utf-8", "replace")

    def logs(self) -> str:
        said = [f"--- {role} ({p.poll()})\n{self.said(role)[-3000:]}" for role, p in self.processes.items()]
        return "\n".join([*said, "--- refused", *map(str, self.denied(keep=True))])

    def denied(self, *, keep: bool = False) -> list[dict[str, str]]:
        """What Valkey has refused anybody since it was asked last."""
        with self.redis("admin") as admin:
            entries = admin.acl_log()
            if not keep:
                admin.acl_log_reset()
        return [{name: entry[name] for name in ("username", "reason", "object", "context")} for entry in entries]

    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, trust_env=False)

    def end_helpers(self) -> None:
        for process in self.helpers:
            process.kill()
            process.wait()

    def close(self) -> None:
        self.end_helpers()
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def written(out: Path, *options: str) -> Path:
    """What ``fabric security init`` writes."""
    assert run(["security", "init", "--out", str(out), *options]) == 0
    return out


def load(rabbitmq: RabbitMQ, definitions: Path, vhost: str) -> None:
    """Returns when the last of them are in force: RabbitMQ answers before."""
    command = [str(rabbitmq.programs / "rabbitmqctl"), "import_definitions", str(definitions)]
    subprocess.run(command, env=rabbitmq._environ, check=True, capture_output=True)
    count = len(json.loads(definitions.read_text())["topic_permissions"])
    until(lambda: len(rabbitmq.ctl("list_topic_permissions", "--vhost", vhost)) == count)


NewHouse = Callable[..., House]


@pytest.fixture(scope="module")
def outside(request: pytest.FixtureRequest) -> Iterator[Outside]:
    """What models say there is the test module's ``ANSWER``."""
    with Outside(request.module.ANSWER) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.ended.set()
        server.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def new_house(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, new_valkey: Callable[..., Valkey]
) -> Iterator[NewHouse]:
    """``new_house("rabbitmq", models)``: servers that know the roles' users, and no processes yet."""
    houses: list[House] = []

    def make(
        broker: str,
        models: list[dict[str, Any]],
        *,
        redis_url: str = "",
        rabbitmq_url: str = "",
        rabbitmq: RabbitMQ | None = None,
        config: dict[str, Any] | None = None,
        **variables: str,
    ) -> House:
        """The URLs: where they aren't the servers' plain doors. ``config``: what is in the file beside the models."""
        folder = tmp_path_factory.mktemp("house")
        port = int(variables.pop("valkey_port", free_ports(1)[0]))
        options = ["--redis", redis_url or f"redis://127.0.0.1:{port}/0"]
        if broker == "rabbitmq":
            rabbitmq = rabbitmq or request.getfixturevalue("rabbitmq_server")
            assert rabbitmq is not None
            if rabbitmq.process is None:
                rabbitmq.start()
            options += ["--rabbitmq", rabbitmq_url or f"amqp://127.0.0.1:{rabbitmq.port}/house"]
        (folder / "fabric.yaml").write_text(yaml.safe_dump({"models": models, **(config or {})}))
        with pytest.MonkeyPatch.context() as patched:
            patched.chdir(folder)  # where no secret is
            patched.setenv("FABRIC_SECRET", variables.get("FABRIC_SECRET", ""))
            access = written(folder / "access", "--config", str(folder / "fabric.yaml"), *options)
        valkey = new_valkey(
            options=("--port", str(port), "--bind", "127.0.0.1", "--aclfile", str(access / "redis.acl"))
        )
        if rabbitmq:
            load(rabbitmq, access / "rabbitmq.json", "house")
        houses.append(House(folder, access, valkey, rabbitmq, variables))
        return houses[-1]

    yield make
    for house in houses:
        house.close()


def chat(model: str, **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "hello"}], **fields}


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]
