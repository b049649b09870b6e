"""The stage: a whole fabric on loopback as real processes, with a proxy on every way between two of them."""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from fabric.cli.hole_watch import keep_whole
from fabric.ledger import upgrade
from fabric.store import Store, append_only, transitions
from storm.plan import BROKER_LINKS, FAKETIME, KILLED, STORE_LINKS, WORKERS, Transport
from storm.proxy import Link
from storm.values import Memory
from tests.conftest import RabbitMQ, Valkey, free_ports

ROOT = Path(__file__).parents[2]
START_S = 120.0
#: Of the data directory: room for all that a long run writes.
_DISK = "768m"
#: Only files that a rewrite has begun get holes from a full disk: so it rewrites often.
_REWRITES = ("--auto-aof-rewrite-min-size", "1mb")
_RESTART_S, _SAMPLE_S = 0.3, 2.0
CONFIG = """
breaker: {{failures: 8, open_s: 1, open_max_s: 2}}
budgets:
  - {{name: all, usd: 100000, window: total}}
policies:
  steady: {{kind: cloud-first, hedge: true}}
webhooks:
  - {{name: ended, url: "http://127.0.0.1:{receiver}/ended", secret_env: STORM_HOOK_SECRET, allow_private: true,
     events: [job.succeeded, job.failed, job.cancelled, job.expired, job.dead, batch.completed, batch.failed]}}
  - {{name: others, url: "http://127.0.0.1:{receiver}/others", secret_env: STORM_HOOK_SECRET, allow_private: true,
     events: [job.succeeded, batch.completed], tenants: [somebody-else]}}
models:
  - name: quick
    deployments:
      - {{name: quick-gpu, engine: mock, tier: gpu, slots: 4, quality: 0.8, options: {{latency_ms: 700, tokens: 8}}}}
      - {{name: quick-cpu, engine: openai, tier: cpu, base_url: "http://127.0.0.1:{home}/v1", model: m, slots: 8,
         options: {{auth: none}}}}
  - name: hosted
    deployments:
      - {{name: hosted-cloud, engine: openai, tier: cloud, base_url: "http://127.0.0.1:{cloud}/v1", model: m, slots: 16,
         data_policy: zero_retention, options: {{auth: none}},
         price: {{input_per_million: 2.5, output_per_million: 10}}}}
      - {{name: hosted-cpu, engine: openai, tier: cpu, base_url: "http://127.0.0.1:{home}/v1", model: m, slots: 8,
         options: {{auth: none}}}}
  - name: patient
    deployments:
      - {{name: patient, engine: openai, tier: cloud, base_url: "http://127.0.0.1:{provider}/v1", model: m, slots: 16,
         data_policy: zero_retention, options: {{auth: none}}, batch_api: {{gather_s: 1, poll_s: 0.5}},
         price: {{input_per_million: 2.5, output_per_million: 10}}}}
"""
#: How long the provider has a batch.
HOLD_S = 4.0
SECRET = "storm-" * 6
HOOK_KEY = b"storm-" * 6
ENGINE_LATENCY_S = {"home": 0.6, "cloud": 0.5}
#: Names in ``CONFIG`` and the links that they lead through.
WAYS = {
    "home": "worker-cpu-engine",
    "cloud": "worker-cloud-engine",
    "provider": "worker-cloud-provider",
    "receiver": "recorder-receiver",
}
#: The worker whose clock jumps.
JUMPING = "worker-gpu-2"


@dataclass
class Process:
    """One process that is started again whenever it ends, unless it is held down."""

    name: str
    command: list[str]
    environ: dict[str, str]
    popen: subprocess.Popen[bytes]
    killed: bool = False  #: by us, the last time it ended
    held: bool = False
    began: float = field(default_factory=time.monotonic)
    rss: list[int] = field(default_factory=list)

    def signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            self.popen.send_signal(number)


class Stage:
    def __init__(self, folder: Path, transport: Transport) -> None:
        self.folder, self.transport = folder, transport
        self.data = folder / "data"
        self.processes: dict[str, Process] = {}
        self.links: dict[str, Link] = {}
        self.exits: list[str] = []
        self.memory: list[Memory] = []
        self.rabbitmq: RabbitMQ | None = None
        self.mounted = False
        self.frozen: set[int] = set()
        self.holes = 0  #: of the store's append-only file, that were taken out or written over
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def api(self) -> str:
        """The door as clients reach it."""
        return f"http://127.0.0.1:{self.links['clients-api'].port}"

    @property
    def inner_api(self) -> str:
        return f"http://127.0.0.1:{self._api_port}"

    @property
    def broker_url(self) -> str:
        """Past all proxies."""
        return self.rabbitmq.url if self.rabbitmq else self.valkey.broker_url

    async def start(self) -> None:
        self.data.mkdir()
        self.mounted = os.geteuid() == 0 and _mount(self.data)
        self.valkey = Valkey(self.data, options=_REWRITES)
        await asyncio.to_thread(self.start_store)
        self.store = Store(self.valkey.url)
        if self.transport == "rabbitmq":
            await asyncio.to_thread(self._start_rabbitmq)
        self._api_port, self._home_port, self._cloud_port, provider, receiver = free_ports(5)
        for link in STORE_LINKS:
            self.links[link] = Link(link, self.valkey.socket)
        if self.rabbitmq is not None:
            for link in BROKER_LINKS:
                self.links[link] = Link(link, self.rabbitmq.port)
        ports = {
            "worker-cloud-engine": self._cloud_port,
            "worker-cpu-engine": self._home_port,
            "worker-cloud-provider": provider,
            "recorder-receiver": receiver,
            "clients-api": self._api_port,
        }
        for link, port in ports.items():
            self.links[link] = Link(link, port)
        for opened in self.links.values():
            await opened.listen()
        self.config = self.folder / "fabric.yaml"
        ways = {name: self.links[link].port for name, link in WAYS.items()}
        self.config.write_text(CONFIG.format(**ways))
        self.database = self.data / "ledger.sqlite3"
        await asyncio.to_thread(upgrade, f"sqlite:///{self.database}")
        self.jump(0)
        for name, port in (("home", self._home_port), ("cloud", self._cloud_port)):
            arguments = [str(port), str(self.folder / f"{name}.jsonl"), str(ENGINE_LATENCY_S[name])]
            self._run(name, [sys.executable, "-m", "storm.engine_server", *arguments])
        log = str(self.folder / "provider.jsonl")
        self._run("provider", [sys.executable, "-m", "storm.provider", str(provider), log, str(HOLD_S)])
        log = str(self.folder / "receiver.jsonl")
        self._run("receiver", [sys.executable, "-m", "storm.receiver", str(receiver), log])
        for name in KILLED:
            self._run(name, [sys.executable, "-m", "fabric.cli", *self._command(name)])
        await self.until(self._ready, START_S)
        keep_store_whole = keep_whole(self.valkey.socket, self.data, self._store_said)
        duties = (self._restart(), self._sample(), keep_store_whole)
        self._tasks = [asyncio.create_task(duty) for duty in duties]

    def start_store(self) -> None:
        """As ``fabric up`` starts it."""
        for said in append_only.mend(self.data):
            self._store_said("WARNING", said)
        self.valkey.start()

    def _store_said(self, level: str, message: str) -> None:
        self.holes += level == "WARNING"
        with (self.folder / "valkey.log").open("a") as log:
            log.write(f"{time.time():.3f} {level} {message}\n")

    def jump(self, seconds: float) -> None:
        """Sets the jumping worker's clock so far off. Replaced in one step: it is read all the time."""
        new = self.folder / "clock.new"
        new.write_text(f"{seconds:+.0f}\n")
        new.rename(self.folder / "clock")

    def kill(self, name: str, *, hold: bool = False) -> None:
        """kill -9. It is started again at once, or with ``hold`` when ``release`` says so."""
        process = self.processes[name]
        process.killed, process.held = True, hold
        process.signal(signal.SIGKILL)

    def release(self, name: str) -> None:
        self.processes[name].held = False

    def freeze(self, pid: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            self.frozen.add(pid)

    def thaw(self, pid: int) -> None:
        self.frozen.discard(pid)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    def worker_id(self, name: str) -> str | None:
        pid = self.processes[name].popen.pid
        infos = self.store(transitions.room()).workers
        return next((info.id for info in infos if info.pid == pid), None)

    async def until(self, condition: object, within_s: float) -> bool:
        """Looks again and again; whether it came true in time."""
        limit = time.monotonic() + within_s
        while not await asyncio.to_thread(condition):  # type: ignore[arg-type]  # any function without arguments
            if time.monotonic() > limit:
                return False
            await asyncio.sleep(0.1)
        return True

    def up(self) -> bool:
        """Every worker beats and the door is open."""
        try:
            here = {info.pid for info in self.store(transitions.room()).workers}
        except Exception:  # noqa: BLE001 - whatever it is, the fabric isn't up
            return False
        return {self.processes[name].popen.pid for name in WORKERS} <= here

    async def close(self) -> None:
        for pid in list(self.frozen):
            self.thaw(pid)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for process in self.processes.values():
            process.signal(signal.SIGKILL)
            process.popen.wait()
            self._keep(process)
        for link in self.links.values():
            await link.close()
        self.store.close()
        self.valkey.kill()
        if self.rabbitmq is not None:
            await asyncio.to_thread(self.rabbitmq.close)
        if self.mounted:
            _unmount(self.data)

    def _ready(self) -> bool:
        for process in self.processes.values():
            if process.popen.poll() is not None:
                raise RuntimeError(f"{process.name} didn't start:\n{self.log(process.name)[-2000:]}")
        ready = all(" ready." in self.log(name) for name in WORKERS)
        return ready and self.up() and "listens on" in self.log("api")

    def _start_rabbitmq(self) -> None:
        installed = Path("/usr/lib/rabbitmq/bin")
        on_path = shutil.which("rabbitmq-server")
        if not installed.exists() and not on_path:
            raise RuntimeError("RabbitMQ isn't installed: apt-get install rabbitmq-server")
        folder = self.folder / "rabbitmq"
        folder.mkdir()
        self.rabbitmq = RabbitMQ(folder, installed if installed.exists() else Path(str(on_path)).resolve().parent)
        self.rabbitmq.start()

    def _command(self, name: str) -> list[str]:
        if name == "api":
            return ["api", "--port", str(self._api_port)]
        if name.startswith("worker"):
            return ["worker", name.split("-")[1], "--name", name]
        return [name.partition("-")[0]]

    def _environ(self, name: str) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("FABRIC_")}
        values = {**kept, "PYTHONPATH": f"{ROOT / 'scripts'}:{ROOT}"}
        if name not in KILLED:
            return values
        store = self.links[f"{name}-store"].port
        broker = f"redis://127.0.0.1:{store}/1"
        if self.rabbitmq is not None:
            link = self.links.get(f"{name}-broker")
            broker = f"amqp://guest:guest@127.0.0.1:{link.port}//" if link else self.rabbitmq.url
        values |= {
            "FABRIC_CONFIG": str(self.config),
            "FABRIC_DATA_DIR": str(self.data),
            "FABRIC_REDIS_URL": f"redis://127.0.0.1:{store}/0",
            "FABRIC_BROKER_URL": broker,
            "FABRIC_DATABASE_URL": f"sqlite:///{self.database}",
            "FABRIC_SECRET": SECRET,
        }
        if name == "recorder":
            values["STORM_HOOK_SECRET"] = "whsec_" + base64.b64encode(HOOK_KEY).decode()
        if name == JUMPING and FAKETIME:
            values |= {
                "LD_PRELOAD": str(FAKETIME[0]),
                "FAKETIME_TIMESTAMP_FILE": str(self.folder / "clock"),
                "FAKETIME_NO_CACHE": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            }
        return values

    def _run(self, name: str, command: list[str]) -> None:
        environ = self._environ(name)
        self.processes[name] = Process(name, command, environ, self._popen(name, command, environ))

    def _popen(self, name: str, command: list[str], environ: dict[str, str]) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                command, env=environ, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    async def _restart(self) -> None:
        while True:
            await asyncio.sleep(_RESTART_S)
            for process in self.processes.values():
                if process.popen.poll() is None or process.held:
                    continue
                if not process.killed and not self._blamed_on_faketime(process):
                    self.exits.append(f"{process.name} (status {process.popen.returncode})")
                self._keep(process)
                process.killed, process.rss, process.began = False, [], time.monotonic()
                process.popen = self._popen(process.name, process.command, process.environ)

    async def _sample(self) -> None:
        while True:
            for process in self.processes.values():
                with suppress(psutil.Error):
                    process.rss.append(psutil.Process(process.popen.pid).memory_info().rss)
            await asyncio.sleep(_SAMPLE_S)

    def _blamed_on_faketime(self, process: Process) -> bool:
        """Now and then ``time.sleep`` fails under libfaketime, which gets the arithmetic of its deadline wrong."""
        if process.name != JUMPING:
            return False
        return "OSError: [Errno 22] Invalid argument" in self.log(process.name)[-20_000:]

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def _keep(self, process: Process) -> None:
        seconds = time.monotonic() - process.began
        self.memory.append(Memory(process.name, process.popen.pid, seconds, tuple(process.rss)))


def _mount(folder: Path) -> bool:
    """A small file system in memory that can be filled up."""
    options = f"size={_DISK},mode=700"
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(folder)], capture_output=True)
    return done.returncode == 0


def _unmount(folder: Path) -> None:
    subprocess.run(["umount", "-l", str(folder)], check=False)
