"""Fixtures that many tests share: real servers. An empty Valkey, the ledger's two databases, a RabbitMQ."""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, settings
from sqlalchemy import create_engine, text

from fabric.ledger import upgrade
from fabric.ledger.tables import metadata
from fabric.store import Store, embedded

# A loaded machine makes any single example slow: that says nothing about the code.
settings.register_profile("fabric", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fabric")


@dataclass
class Valkey:
    """A Valkey process with its data in a folder of its own. ``kill`` then ``start`` is a crash."""

    folder: Path
    process: subprocess.Popen[bytes] | None = None
    prefix: tuple[str, ...] = ()  #: of the command: where it runs
    options: tuple[str, ...] = ()  #: over those of an embedded server

    @property
    def socket(self) -> Path:
        return self.folder / "s"

    @property
    def url(self) -> str:
        return embedded.url(self.socket)

    @property
    def broker_url(self) -> str:
        return embedded.broker_url(self.socket)

    def start(self) -> None:
        command = [*self.prefix, *embedded.server_command(self.socket, self.folder), *self.options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert self.process.stdout
        said = []
        for line in self.process.stdout:
            said.append(line)
            if b"eady to accept connections" in line:
                break
        else:
            raise RuntimeError(f"Valkey didn't start: {b''.join(said[-20:]).decode(errors='replace')}")
        # Nobody reads on: a full pipe would stop the server.
        subprocess.Popen(["cat"], stdin=self.process.stdout, stdout=subprocess.DEVNULL)
        self.process.stdout.close()

    def kill(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[Valkey]:
    # A unix socket's path is limited to about 100 bytes: pytest's own folders can be too deep.
    with tempfile.TemporaryDirectory(prefix="fabric-", dir="/tmp") as folder:
        server = Valkey(Path(folder))
        server.start()
        yield server
        server.kill()


@pytest.fixture(scope="session")
def new_valkey() -> Iterator[Callable[..., Valkey]]:
    """Starts a server of the test's own, for one that kills it or shares it with real processes."""
    with ExitStack() as stack:

        def start(**fields: Any) -> Valkey:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fabric-", dir="/tmp")))
            server = Valkey(folder, **fields)
            stack.callback(server.kill)
            server.start()
            return server

        yield start


@pytest.fixture
def valkey(valkey_server: Valkey) -> Valkey:
    """A running, empty Valkey."""
    if valkey_server.process is None:
        valkey_server.start()
    with redis.Redis.from_url(valkey_server.url) as connection:
        connection.flushall()
    return valkey_server


@pytest.fixture
def store(valkey: Valkey) -> Iterator[Store]:
    store = Store(valkey.url)
    yield store
    store.close()


@dataclass
class SmallDisk:
    """A file system of 16 MB in memory, which can be filled up."""

    folder: Path

    def fill(self) -> None:
        descriptor = os.open(self.folder / "filler", os.O_WRONLY | os.O_CREAT)
        try:
            while True:
                os.write(descriptor, b"x" * 4096)
        except OSError:
            os.close(descriptor)

    def free(self) -> None:
        (self.folder / "filler").unlink()

    def leave_a_hole(self, server: Valkey) -> set[bytes]:
        """The keys of a server that runs on this disk, was written anew, and met a full disk right then."""
        with redis.Redis.from_url(server.url) as connection:
            connection.set("before", "x" * 100)
            connection.bgrewriteaof()
            until(lambda: not connection.info("persistence")["aof_rewrite_in_progress"])
            connection.set("between", "x" * 100)
            self.fill()
            with pytest.raises(redis.ResponseError, match="MISCONF"):
                for number in range(100):
                    connection.set(f"full-{number}", "x" * 3000)
            self.free()
            until(lambda: connection.info("persistence")["aof_last_write_status"] == "ok")
            connection.set("after", "x")
            return set(connection.keys())


def until(look: Callable[[], Any], within_s: float = 60.0) -> None:
    """Returns as soon as ``look`` answers with something."""
    limit = time.monotonic() + within_s
    while not look():
        assert time.monotonic() < limit, "it didn't come about"
        time.sleep(0.02)


@pytest.fixture
def small_disk() -> Iterator[SmallDisk]:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small tmpfs")
    with tempfile.TemporaryDirectory(prefix="fabric-", dir="/tmp") as path:
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", path], capture_output=True).returncode:
            pytest.skip("a small tmpfs can't be mounted here")
        try:
            yield SmallDisk(Path(path))
        finally:
            subprocess.run(["umount", "-l", path], check=False)


@dataclass
class Postgres:
    """A PostgreSQL server on a unix socket in a folder of its own. ``crash`` then ``start`` is a crash."""

    folder: Path
    programs: Path
    user: str | None  #: it refuses to run as root
    process: subprocess.Popen[bytes] | None = None
    settings: tuple[str, ...] = ()  #: over those that it has here
    _names: Iterator[int] = field(default_factory=itertools.count)

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://postgres@/{database}?host={self.folder}&port=5432"

    def make(self) -> None:
        command = ["initdb", "-D", "data", "-A", "trust", "-U", "postgres", "-N", "-E", "UTF8", "--locale", "C"]
        self._run(command).check_returncode()

    def start(self, port: int = 5432) -> None:
        settings = ("listen_addresses=", "fsync=off", f"port={port}", f"unix_socket_directories={self.folder}")
        options = [part for setting in (*settings, *self.settings) for part in ("-c", setting)]
        self.process = subprocess.Popen(
            [str(self.programs / "postgres"), "-D", "data", *options],
            cwd=self.folder,
            user=self.user,
            stdout=subprocess.DEVNULL,
            stderr=(self.folder / "log").open("ab"),
        )
        until = time.monotonic() + 60
        while self._run(["pg_isready", "-q", "-h", str(self.folder), "-p", str(port)]).returncode:
            if time.monotonic() > until or self.process.poll() is not None:
                raise RuntimeError(f"PostgreSQL didn't start: {(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.05)

    def crash(self) -> None:
        """Every process of the server ends at once and writes nothing more."""
        if self.process:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait()
            self.process = None

    def database(self) -> str:
        """A new, empty database; answers its URL."""
        name = f"test_{next(self._names)}"
        self._run(["createdb", "-h", str(self.folder), "-U", "postgres", name]).check_returncode()
        return self.url(name)

    def _run(self, command: list[str]) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [str(self.programs / command[0]), *command[1:]], cwd=self.folder, user=self.user, capture_output=True
        )


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    on_path = shutil.which("initdb")
    if not installed and not on_path:
        pytest.skip("PostgreSQL isn't installed: apt-get install postgresql")
    user = None
    if os.geteuid() == 0:
        user = "postgres"
        try:
            pwd.getpwnam(user)
        except KeyError:
            pytest.skip("PostgreSQL doesn't run as root, and there is no user `postgres`")
    programs = installed[-1].parent if installed else Path(str(on_path)).resolve().parent
    with tempfile.TemporaryDirectory(prefix="fabric-pg-", dir="/tmp") as folder:
        if user:
            shutil.chown(folder, user)
        server = Postgres(Path(folder), programs, user)
        server.make()
        server.start()
        yield server
        server.crash()


@pytest.fixture
def postgres(postgres_server: Postgres) -> Postgres:
    """A running PostgreSQL."""
    if postgres_server.process is None:
        postgres_server.start()
    return postgres_server


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database without tables, of each kind that the ledger runs on."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.sqlite3'}"
    postgres: Postgres = request.getfixturevalue("postgres")
    return postgres.database()


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ledger") / "ledger.sqlite3"
    upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture
def sqlite_ledger(sqlite_template: Path, tmp_path: Path) -> str:
    """The URL of an empty ledger on SQLite."""
    return f"sqlite:///{shutil.copy(sqlite_template, tmp_path)}"


@pytest.fixture(scope="session")
def postgres_database(postgres_server: Postgres) -> str:
    url = postgres_server.database()
    upgrade(url)
    return url


@pytest.fixture
def postgres_ledger(postgres: Postgres, postgres_database: str) -> str:
    """The URL of an empty ledger on PostgreSQL."""
    engine = create_engine(postgres_database)
    with engine.begin() as connection:
        connection.execute(text("TRUNCATE " + ", ".join(table.name for table in metadata.sorted_tables)))
    engine.dispose()
    return postgres_database


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty ledger on each kind of database."""
    url: str = request.getfixturevalue("sqlite_ledger" if request.param == "sqlite" else "postgres_ledger")
    return url


@dataclass
class RabbitMQ:
    """A RabbitMQ node of its own, on loopback alone. ``kill`` then ``start`` is a crash.

    ``prefix``: of its commands, where it runs in a network of its own; ``address``: that it listens on there.
    """

    folder: Path
    programs: Path
    port: int = 0
    prefix: tuple[str, ...] = ()
    address: str = "127.0.0.1"
    conf: tuple[str, ...] = ()  #: more lines of ``rabbitmq.conf``
    plugins: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    _epmd: subprocess.Popen[bytes] | None = None
    _environ: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return self.url_at("127.0.0.1")

    def url_at(self, address: str) -> str:
        return f"amqp://guest:guest@{address}:{self.port}//"

    def start(self) -> None:
        """The first start chooses the ports; the node is known by them."""
        if self._epmd is None:
            self.port, distribution, epmd = free_ports(3)
            self._prepare(distribution, epmd)
            # Not left to the node: its daemon would outlive us.
            self._epmd = subprocess.Popen([*self.prefix, "epmd", "-address", "127.0.0.1", "-port", str(epmd)])
        log = (self.folder / "output").open("ab")
        self.process = subprocess.Popen(
            [*self.prefix, str(self.programs / "rabbitmq-server")],
            env=self._environ,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        until = time.monotonic() + 90
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"RabbitMQ didn't start: {(self.folder / 'output').read_text()[-2000:]}")
            time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL to the node and the few helpers that it has started."""
        if self.process:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def close(self) -> None:
        self.kill()
        if self._epmd:
            self._epmd.kill()
            self._epmd.wait()

    def ctl(self, *command: str) -> list[list[str]]:
        """The rows of a ``rabbitmqctl`` command, each as its columns."""
        done = subprocess.run(
            [str(self.programs / "rabbitmqctl"), "--quiet", "--no-table-headers", *command],
            env=self._environ,
            capture_output=True,
            text=True,
            check=True,
        )
        return [line.split("\t") for line in done.stdout.splitlines()]

    def _prepare(self, distribution: int, epmd: int) -> None:
        lines = (f"listeners.tcp.default = {self.address}:{self.port}", "loopback_users = none", *self.conf)
        (self.folder / "rabbitmq.conf").write_text("\n".join(lines) + "\n")
        (self.folder / "enabled_plugins").write_text(f"[{','.join(self.plugins)}].")
        inside = {
            "HOME": "",  # the cookie
            "RABBITMQ_CONFIG_FILE": "rabbitmq.conf",
            "RABBITMQ_CONF_ENV_FILE": "no-such-file",
            "RABBITMQ_ENABLED_PLUGINS_FILE": "enabled_plugins",
            "RABBITMQ_LOG_BASE": "log",
            "RABBITMQ_MNESIA_BASE": "mnesia",
            "RABBITMQ_PID_FILE": "pid",
        }
        self._environ = {
            **os.environ,
            **{name: str(self.folder / path) for name, path in inside.items()},
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_NODENAME": f"fabric-{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(distribution),
            "ERL_EPMD_PORT": str(epmd),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            # One scheduler that doesn't spin: other tests need the processor.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-start_epmd false +S 1:1 +sbwt none "
            "-kernel inet_dist_use_interface {127,0,0,1}",
            "RUNNING_UNDER_SYSTEMD": "true",  # the script becomes the node, so that its pid is ours
        }

    def _answers(self) -> bool:
        """Whether it greets: it opens its port some time before it is ready."""
        if self.prefix:  # out of our reach
            return b"Server startup complete" in (self.folder / "output").read_bytes()
        try:
            with socket.create_connection(("127.0.0.1", self.port), 5) as connection:
                connection.sendall(b"AMQP\x00\x00\x09\x01")
                return bool(connection.recv(1))
        except OSError:
            return False


def free_ports(count: int) -> list[int]:
    """Ports on loopback that nobody listens on at this moment, and that no connection is given by the kernel."""
    chance, sockets = random.SystemRandom(), list[socket.socket]()
    while len(sockets) < count:
        with contextlib.suppress(OSError):  # somebody listens there
            sockets.append(socket.create_server(("127.0.0.1", chance.randint(20_000, 32_000))))
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


@pytest.fixture(scope="session")
def new_rabbitmq() -> Iterator[Callable[..., RabbitMQ]]:
    """Starts a node of the test's own."""
    installed = Path("/usr/lib/rabbitmq/bin")
    on_path = shutil.which("rabbitmq-server")
    if not (installed / "rabbitmq-server").exists() and not on_path:
        pytest.skip("RabbitMQ isn't installed: apt-get install rabbitmq-server")
    # Debian's program on the PATH changes the user and the folder; the one behind it doesn't.
    programs = installed if installed.exists() else Path(str(on_path)).resolve().parent
    with ExitStack() as stack:

        def start(**fields: Any) -> RabbitMQ:
            folder = tempfile.TemporaryDirectory(prefix="fabric-rabbit-", dir="/tmp", ignore_cleanup_errors=True)
            server = RabbitMQ(Path(stack.enter_context(folder)), programs, **fields)
            stack.callback(server.close)
            server.start()
            return server

        yield start


@pytest.fixture(scope="session")
def rabbitmq_server(new_rabbitmq: Callable[..., RabbitMQ]) -> RabbitMQ:
    return new_rabbitmq()


@pytest.fixture
def rabbitmq(rabbitmq_server: RabbitMQ) -> RabbitMQ:
    """A running RabbitMQ, with what earlier tests have left in it."""
    if rabbitmq_server.process is None:
        rabbitmq_server.start()
    return rabbitmq_server


_CHROMIUM = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage"
)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless Chromium, for ``new_context``. As long as it is open, pytest-asyncio can't run a test: hence not
    for the session."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("Chromium isn't installed: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, headless=True, args=_CHROMIUM.split())
        yield browser
        browser.close()
