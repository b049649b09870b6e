"""A real gateway on a free port, and a worker that plays scheduler and engine on the store itself."""

from __future__ import annotations

import contextlib
import queue
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import openai
import orjson
import pytest
import uvicorn
from redis.exceptions import RedisError

from fabric.contracts.catalog import Catalog
from fabric.contracts.decision import Decision, Scored
from fabric.contracts.errors import Cancelled, EngineError, ErrorInfo, Unavailable
from fabric.contracts.job import JobSpec, JobState, Measures, Usage
from fabric.contracts.job_seals import WorkerSeals
from fabric.contracts.secret import Secrets
from fabric.contracts.worker import WorkerInfo
from fabric.contracts.zones import WorkerKeys
from fabric.gateway import BoundedHttp, GatewaySettings, create_app
from fabric.gateway.gateway import Gateway
from fabric.ledger import Ledger, upgrade
from fabric.ledger.tables import metadata
from fabric.store import Store, reads, transitions
from fabric.store.transitions import Claimed, Dispatch, Failure, Outcome, Piece

if TYPE_CHECKING:
    from tests.conftest import Valkey

#: Longer than anything takes on a loaded machine.
PATIENCE_S = 60.0
CATALOG = Catalog.model_validate(
    {
        "models": [
            {
                "name": name,
                "deployments": [
                    {"engine": "mock", "tier": "cpu", "capabilities": ["chat", "completions", "embeddings"]}
                ],
            }
            for name in ("small", "org/large")
        ]
    }
)
USAGE = Usage(input_tokens=3, output_tokens=2, cached_input_tokens=1)
MEASURES = Measures(engine_s=0.1, usage=USAGE, cost_usd=0.000002, served_model="small").dump()
ENGINE_ERROR = EngineError("The engine stumbled.").info


#: Of the gateway, and of who plays its workers.
SECRETS = Secrets(["s" * 32])
SEALS = WorkerSeals(WorkerKeys.of(SECRETS, ["local", "cloud"]))


def eventually(look: Callable[[], Any]) -> Any:
    """What ``look`` answers as soon as that is something."""
    until = time.monotonic() + PATIENCE_S
    while not (found := look()):
        assert time.monotonic() < until, "it didn't come about"
        time.sleep(0.01)
    return found


@pytest.fixture(name="eventually")
def _eventually() -> Callable[[Callable[[], Any]], Any]:
    return eventually


@dataclass
class Running:
    """A job in the worker's hands. Every word is one transition."""

    store: Store
    claimed: Claimed

    @property
    def spec(self) -> JobSpec:
        return self.claimed.spec

    @property
    def body(self) -> dict[str, Any]:
        body: dict[str, Any] = orjson.loads(SEALS.request(self.spec, self.claimed.payload))["body"]
        return body

    def say(self, *texts: str) -> None:
        """Pieces of a streamed answer, all at once."""
        bodies = [SEALS.piece(self.spec, _token(self.spec, text)) for text in texts]
        pieces = [Piece(self.spec.id, self.claimed.attempt, body) for body in bodies]
        assert self.store(transitions.emit(pieces)) == [1] * len(pieces)

    def succeed(self, text: str = "hello there") -> None:
        result = SEALS.answer(self.spec, _result(self, text))
        self._commit(Outcome(self.spec.id, self.claimed.attempt, JobState.SUCCEEDED, result))

    def fail(self, error: ErrorInfo = ENGINE_ERROR, state: JobState = JobState.FAILED) -> None:
        self._commit(Outcome(self.spec.id, self.claimed.attempt, state, error=error))

    def park(self) -> None:
        self.fail(state=JobState.DEAD)

    def cancelled(self) -> None:
        """As its engine has stopped."""
        self.fail(Cancelled("The job was cancelled.").info, JobState.CANCELLED)

    def give_up(self) -> str:
        """This attempt failed; the job waits for its next one."""
        failure = Failure(self.spec.id, self.claimed.attempt, 0, ENGINE_ERROR)
        return self.store(transitions.fail([failure]))[0]

    def _commit(self, outcome: Outcome) -> None:
        assert self.store(transitions.commit([replace(outcome, measures=MEASURES)])) == [1]


def _token(spec: JobSpec, text: str) -> bytes:
    if spec.endpoint == "/v1/chat/completions":
        chunk: dict[str, Any] = {"index": 0, "delta": {"content": text}, "finish_reason": None}
        kind = "chat.completion.chunk"
    else:
        chunk, kind = {"index": 0, "text": text, "finish_reason": None}, "text_completion"
    return orjson.dumps({"type": "token", "chunk": {"object": kind, "choices": [chunk]}})


def _result(job: Running, text: str) -> bytes:
    """What the engines answer: OpenAI's body without ``id`` and ``model``."""
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    if job.spec.stream:
        return b""
    if job.spec.endpoint == "/v1/embeddings":
        wanted = job.body["input"]
        count = len(wanted) if isinstance(wanted, list) else 1
        data = [{"object": "embedding", "index": i, "embedding": [0.5, -1.0, float(i)]} for i in range(count)]
        return orjson.dumps({"object": "list", "data": data, "usage": usage})
    if job.spec.endpoint == "/v1/completions":
        choice: dict[str, Any] = {"index": 0, "text": text, "logprobs": None, "finish_reason": "stop"}
        return orjson.dumps({"object": "text_completion", "choices": [choice], "usage": usage})
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    return orjson.dumps({"object": "chat.completion", "choices": [choice], "usage": usage})


def echo(job: Running) -> None:
    """Answers with the last word of the user, in two pieces where it streams."""
    text = job.body["messages"][-1]["content"] if "messages" in job.body else str(job.body.get("prompt", ""))
    if job.spec.stream:
        half = len(text) // 2
        job.say(text[:half], text[half:])
    job.succeed(text)


@dataclass
class Worker:
    """Takes every job at once. ``act`` answers them on the worker's thread; without it the test does."""

    store: Store
    name: str = "w1"
    act: Callable[[Running], None] | None = echo
    beating: bool = True
    _jobs: queue.Queue[Running] = field(default_factory=queue.Queue)
    _stopped: queue.Queue[str] = field(default_factory=queue.Queue)
    _over: threading.Event = field(default_factory=threading.Event)

    def next(self) -> Running:
        """The next job that ``act`` doesn't answer."""
        return self._jobs.get(timeout=PATIENCE_S)

    def stopped(self) -> str:
        """The next job that this worker was told to stop."""
        return self._stopped.get(timeout=PATIENCE_S)

    def must_stop(self, job: Running) -> bool:
        """Whether somebody has asked for the end of a job that this worker holds."""
        return bool(self.store.redis.hexists(f"fabric:abort:{self.name}", job.spec.id))

    @contextlib.contextmanager
    def working(self) -> Iterator[Worker]:
        with contextlib.closing(self.store.redis.pubsub()) as orders:
            orders.subscribe(reads.worker_channel(self.name))
            assert orders.get_message(timeout=PATIENCE_S)["type"] == "subscribe"
            threads = [threading.Thread(target=self._work), threading.Thread(target=self._obey, args=(orders,))]
            for thread in threads:
                thread.start()
            try:
                yield self
            finally:
                self._over.set()
                with contextlib.suppress(RedisError):  # so that nobody waits for a time-out
                    self.store.redis.lpush(reads.WAKE, "1")
                    self.store.redis.publish(reads.worker_channel(self.name), "")
                for thread in threads:
                    thread.join()

    def _work(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(Unavailable, RedisError):
                if self.beating:
                    self.store(transitions.heartbeat(self._info(), []))
                room = self.store(transitions.room())
                if not room.lanes:
                    self.store.redis.blpop([reads.WAKE], timeout=0.2)
                    continue
                taken = self.store(transitions.take([(lane.name, 64) for lane in room.lanes]))
                for claimed in self._claim([job.spec for job in taken]):
                    job = Running(self.store, claimed)
                    self.act(job) if self.act else self._jobs.put(job)

    def _claim(self, specs: list[JobSpec]) -> list[Claimed]:
        places = [CATALOG.by_model[spec.model].deployments[0].name for spec in specs]
        dispatches = [
            Dispatch(spec.id, place, "cpu", Decision("cheapest", "h", (Scored(place, "cpu", 0, 0),), ()).dump())
            for spec, place in zip(specs, places, strict=True)
        ]
        attempts = self.store(transitions.dispatch(dispatches, claim_within_ms=600_000))
        chunk = [(spec.id, attempt) for spec, attempt in zip(specs, attempts, strict=True) if attempt]
        return self.store(transitions.claim(self.name, chunk))

    def _info(self) -> WorkerInfo:
        names = CATALOG.by_deployment
        return WorkerInfo(
            self.name, "cpu", "host", 1, 0, dict.fromkeys(names, 4), dict.fromkeys(names, 8), {"small-cpu": 1}
        )

    def _obey(self, orders: Any) -> None:
        while not self._over.is_set():
            try:
                message = orders.get_message(timeout=0.2)
            except RedisError:
                self._over.wait(0.05)
                continue
            if message and message["type"] == "message":
                self._stopped.put(message["data"].decode().split("\n")[0])


@pytest.fixture
def worker(valkey: Valkey, store: Store) -> Iterator[Worker]:
    """Answers every job with ``echo``."""
    with Worker(store).working() as worker:
        yield worker


@pytest.fixture
def by_hand(valkey: Valkey, store: Store) -> Iterator[Worker]:
    """Takes every job and leaves the answer to the test."""
    with Worker(store, act=None).working() as worker:
        yield worker


@dataclass
class Served:
    """A gateway that listens."""

    settings: GatewaySettings
    url: str
    server: uvicorn.Server
    thread: threading.Thread

    @property
    def requests(self) -> int:
        """Requests that are being answered."""
        return len(self.server.server_state.tasks)

    @property
    def inside(self) -> Gateway:
        """For what can't be seen from outside: that nothing is going to happen any more."""
        app: Any = self.server.config.app
        inside: Gateway = app._app.state.gateway
        return inside

    @cached_property
    def ledger(self) -> Ledger:
        return Ledger(self.settings.database_url)

    def http(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=PATIENCE_S, trust_env=False, **options)

    def openai(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", timeout=PATIENCE_S, **options)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples with these labels."""
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        with self.http() as http:
            lines = http.get("/metrics").text.splitlines()
        samples = [line for line in lines if line.startswith((f"{name}{{", f"{name} "))]
        return sum(float(line.rsplit(" ", 1)[1]) for line in samples if all(label in line for label in wanted))

    def until_ready(self) -> None:
        with self.http() as http:
            eventually(lambda: http.get("/health/ready").status_code == 200)

    def stop(self) -> None:
        """As SIGTERM does."""
        self.server.should_exit = True
        self.thread.join()


@contextlib.contextmanager
def serving(settings: GatewaySettings, *, drain_s: int = 10) -> Iterator[Served]:
    listener = socket.create_server(("127.0.0.1", 0))
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=BoundedHttp,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=drain_s,
    )
    server = uvicorn.Server(config)
    app.stopping = lambda: server.should_exit
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    served = Served(settings, f"http://127.0.0.1:{listener.getsockname()[1]}", server, thread)
    try:
        eventually(lambda: server.started)
        served.until_ready()
        yield served
    finally:
        served.stop()


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty ledger, to be copied: migrations take longer than most tests."""
    path = tmp_path_factory.mktemp("ledger") / "empty.sqlite3"
    upgrade(f"sqlite:///{path}")
    return path


def _settings(valkey: Valkey, folder: Path, migrated: Path) -> GatewaySettings:
    shutil.copy(migrated, folder / "ledger.sqlite3")
    return GatewaySettings(
        catalog=CATALOG,
        redis_url=valkey.url,
        database_url=f"sqlite:///{folder / 'ledger.sqlite3'}",
        files_dir=folder / "files",
        secrets=SECRETS,
        return_s=0.3,
    )


@pytest.fixture
def settings(valkey: Valkey, tmp_path: Path, migrated: Path) -> GatewaySettings:
    """For a gateway of a test's own: ``with serving(replace(settings, …)) as gateway``."""
    return _settings(valkey, tmp_path, migrated)


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    """Starts a gateway of the test's own."""
    with contextlib.ExitStack() as stack:
        yield lambda *args, **kwargs: stack.enter_context(serving(*args, **kwargs))


@pytest.fixture(scope="session")
def _gateway(valkey_server: Valkey, tmp_path_factory: pytest.TempPathFactory, migrated: Path) -> Iterator[Served]:
    with serving(_settings(valkey_server, tmp_path_factory.mktemp("gateway"), migrated)) as served:
        yield served


@pytest.fixture
def gateway(valkey: Valkey, _gateway: Served) -> Served:
    """The one that most tests share, with nothing left of the tests before."""
    with _gateway.ledger.writing() as connection:
        for table in metadata.sorted_tables:
            if table.name != "audit":  # it keeps what it has
                connection.execute(table.delete())
    _gateway.until_ready()
    return _gateway


@pytest.fixture
def http(gateway: Served) -> Iterator[httpx.Client]:
    with gateway.http() as client:
        yield client


@pytest.fixture
def client(gateway: Served) -> Iterator[openai.OpenAI]:
    with gateway.openai(max_retries=0) as client:
        yield client


@pytest.fixture
def meanwhile() -> Iterator[Callable[..., Future[Any]]]:
    """Runs a call beside the test."""
    with ThreadPoolExecutor(8) as threads:
        yield threads.submit


@pytest.fixture
def state(store: Store) -> Callable[[str], JobState | None]:
    return lambda job_id: store(reads.state(job_id))


def chat(text: str = "hi", **fields: Any) -> dict[str, Any]:
    return {"model": "small", "messages": [{"role": "user", "content": text}], **fields}
