"""TLS to Redis and to RabbitMQ under a made-up authority: it is spoken, and what isn't to be trusted is refused."""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis
from sqlalchemy import text

from fabric import settings
from fabric.broker import Sender, make_app
from fabric.cli.entry import run
from fabric.contracts.errors import ConfigError, Unavailable
from fabric.contracts.secret import Secrets
from fabric.contracts.signed import Signer
from fabric.ledger import Ledger
from fabric.store import AsyncStore, Store, reads
from tests.conftest import Postgres, free_ports
from tests.security.conftest import House, chat, until
from tests.security.doors import Authority, Door

if TYPE_CHECKING:
    from tests.conftest import RabbitMQ, Valkey
    from tests.security.conftest import NewHouse

PASSWORD = "the-password-of-nobody"
SIGNER = Signer.of(Secrets.passing())
NewDoor = Callable[..., int]
MODELS = [{"name": "near", "deployments": [{"engine": "mock", "tier": "cpu", "options": {"latency_ms": 1}}]}]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority") / "ours")


@pytest.fixture(scope="module")
def new_door() -> Iterator[NewDoor]:
    doors: list[Door] = []

    def make(files: tuple[Path, Path], port: int) -> int:
        doors.append(Door(*files, lambda: asyncio.open_connection("127.0.0.1", port)))
        return doors[-1].port

    yield make
    for door in doors:
        door.close()


@pytest.fixture(scope="module", params=["valkey", "rabbitmq"])
def house(
    request: pytest.FixtureRequest,
    new_house: NewHouse,
    new_rabbitmq: Callable[..., RabbitMQ],
    authority: Authority,
    new_door: NewDoor,
) -> Iterator[House]:
    """Users with the least rights, and TLS to both servers. RabbitMQ speaks it itself."""
    (valkey_port,) = free_ports(1)
    files = authority.certify("127.0.0.1")
    variables = {"FABRIC_REDIS_CA": str(authority.ca), "valkey_port": str(valkey_port)}
    urls = {"redis_url": f"rediss://127.0.0.1:{new_door(files, valkey_port)}/0"}
    if request.param == "rabbitmq":
        (tls_port,) = free_ports(1)
        said = {"listeners.ssl.default": f"127.0.0.1:{tls_port}", "ssl_options.cacertfile": authority.ca}
        said |= {"ssl_options.certfile": files[0], "ssl_options.keyfile": files[1]}
        variables["FABRIC_BROKER_CA"] = str(authority.ca)
        urls["rabbitmq_url"] = f"amqps://127.0.0.1:{tls_port}/house"
        urls["rabbitmq"] = new_rabbitmq(conf=tuple(f"{name} = {value}" for name, value in said.items()))
    house = new_house(request.param, MODELS, **urls, **variables)
    yield house.open("cpu")
    house.close()


def test_a_whole_way_over_tls(house: House) -> None:
    with house.http() as http:
        answer = http.post("/v1/chat/completions", json=chat("near"))
        assert answer.status_code == 200, house.logs()
        until(lambda: http.get("/v1/usage").json()["data"], house.logs)
    given = [pair for role in house.processes for pair in house.role(role).items()]
    kinds = {value.partition(":")[0] for name, value in given if name.endswith("_URL")}
    assert kinds == ({"rediss", "amqps"} if house.rabbitmq else {"rediss"})
    assert house.denied() == []


def test_doctor_finds_both(house: House, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    said = {"FABRIC_CONFIG": str(house.folder / "fabric.yaml"), "FABRIC_DATA_DIR": str(house.folder)}
    for name, value in (said | house.variables | house.role("scheduler")).items():
        monkeypatch.setenv(name, value)
    run(["doctor", "--json"])
    said_of_broker = capsys.readouterr().out
    assert ("amqps: answers" if house.rabbitmq else "rediss: answers") in said_of_broker
    assert house.role("scheduler")["FABRIC_REDIS_URL"].split(":")[2].split("@")[0] not in said_of_broker


#: name -> names and days of the server's certificate, whether its authority is the one that is trusted, what is said.
WRONG: dict[str, tuple[str, tuple[int, int], bool, str]] = {
    "signed by another": ("127.0.0.1", (-1, 10), False, "signed by nobody who is trusted here"),
    "expired": ("127.0.0.1", (-10, -1), True, "has expired: renew it"),
    "not valid yet": ("127.0.0.1", (1, 10), True, "isn't valid yet: set the clocks"),
    "for another name": ("store.internal", (-1, 10), True, "is for another name"),
    "for another address": ("192.0.2.1", (-1, 10), True, "is for another name"),
}


@pytest.fixture(scope="module")
def refuse(authority: Authority, new_door: NewDoor, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """``refuse("expired", port)``: the port of a door before that one, and the authority that is trusted."""
    other = Authority(tmp_path_factory.mktemp("authority") / "another")

    def make(wrong: str, port: int) -> tuple[int, Path]:
        name, days, trusted, _ = WRONG[wrong]
        return new_door(authority.certify(name, days=days), port), authority.ca if trusted else other.ca

    return make


def loaded(**variables: str) -> settings.Settings:
    return settings.load(environ={"FABRIC_DATA_DIR": "/nowhere", **variables})


def check(message: str, wrong: str) -> None:
    assert WRONG[wrong][3] in message
    assert PASSWORD not in message


@pytest.mark.parametrize("wrong", WRONG)
async def test_a_store_that_isnt_to_be_trusted_is_refused(valkey: Valkey, refuse: Any, wrong: str) -> None:
    port, ca = refuse(wrong, 1)
    known = loaded(FABRIC_REDIS_URL=f"rediss://me:{PASSWORD}@127.0.0.1:{port}/0", FABRIC_REDIS_CA=str(ca))
    store = Store(known.redis_url)
    with pytest.raises(Unavailable) as refused:
        await asyncio.to_thread(store, reads.ping())
    check(refused.value.message, wrong)
    as_gateway = AsyncStore(known.redis_url)
    with pytest.raises(Unavailable) as refused:
        await as_gateway(reads.ping())
    check(refused.value.message, wrong)
    store.close()
    await as_gateway.close()


class TestServersThatWantToKnowWhoComes:
    @pytest.fixture
    def door(self, authority: Authority, valkey: Valkey) -> Iterator[Door]:
        clients = authority.ca
        door = Door(
            *authority.certify("127.0.0.1"), lambda: asyncio.open_unix_connection(str(valkey.socket)), clients=clients
        )
        yield door
        door.close()

    def test_the_store(self, authority: Authority, door: Door) -> None:
        cert, key = authority.certify("worker")
        given = {"FABRIC_REDIS_URL": f"rediss://127.0.0.1:{door.port}/0", "FABRIC_REDIS_CA": str(authority.ca)}
        store = Store(loaded(**given).redis_url)
        with pytest.raises(Unavailable):
            store(reads.ping())
        store.close()
        known = loaded(**given, FABRIC_REDIS_CERT=str(cert), FABRIC_REDIS_KEY=str(key))
        store = Store(known.redis_url)
        store(reads.ping())
        store.close()
        # And the broker, where it is the same server.
        sender = Sender(make_app(known.broker_url), SIGNER)
        sender.connect()
        sender.close()

    def test_rabbitmq(self, authority: Authority, new_rabbitmq: Callable[..., RabbitMQ]) -> None:
        (port,) = free_ports(1)
        server, client = authority.certify("127.0.0.1"), authority.certify("worker")
        said = {"listeners.ssl.default": f"127.0.0.1:{port}", "ssl_options.cacertfile": authority.ca}
        said |= {"ssl_options.certfile": server[0], "ssl_options.keyfile": server[1]}
        said |= {"ssl_options.verify": "verify_peer", "ssl_options.fail_if_no_peer_cert": "true"}
        new_rabbitmq(conf=tuple(f"{name} = {value}" for name, value in said.items()))
        url = {"FABRIC_BROKER_URL": f"amqps://guest:guest@127.0.0.1:{port}//", "FABRIC_BROKER_CA": str(authority.ca)}
        refused = Sender(make_app(loaded(**url).broker_url), SIGNER)
        with pytest.raises(Unavailable):
            refused.connect()
        known = loaded(**url, FABRIC_BROKER_CERT=str(client[0]), FABRIC_BROKER_KEY=str(client[1]))
        sender = Sender(make_app(known.broker_url), SIGNER)
        sender.connect()
        sender.close()

    def test_half_of_it_and_what_is_no_use_are_refused(self, authority: Authority, tmp_path: Path) -> None:
        cert, key = authority.certify("worker")
        url = {"FABRIC_REDIS_URL": "rediss://store/0"}
        with pytest.raises(ConfigError, match="belong together"):
            loaded(**url, FABRIC_REDIS_CERT=str(cert))
        with pytest.raises(ConfigError, match=r"FABRIC_REDIS_CERT: .* can't be used"):
            loaded(**url, FABRIC_REDIS_CERT=str(cert), FABRIC_REDIS_KEY=str(authority.ca))
        with pytest.raises(ConfigError, match="unset it, or use TLS"):
            loaded(FABRIC_REDIS_URL="redis://store/0", FABRIC_REDIS_CERT=str(cert), FABRIC_REDIS_KEY=str(key))


@pytest.mark.parametrize("scheme", ["rediss", "amqps"])
@pytest.mark.parametrize("wrong", WRONG)
def test_a_broker_that_isnt_to_be_trusted_is_refused(refuse: Any, scheme: str, wrong: str) -> None:
    port, ca = refuse(wrong, 1)
    known = loaded(FABRIC_BROKER_URL=f"{scheme}://me:{PASSWORD}@127.0.0.1:{port}/1", FABRIC_BROKER_CA=str(ca))
    sender = Sender(make_app(known.broker_url), SIGNER)
    with pytest.raises(Unavailable) as refused:
        sender.connect()
    check(refused.value.message, wrong)
    sender.close()


def test_without_an_authority_of_its_own_the_systems_count(refuse: Any) -> None:
    port, _ = refuse("signed by another", 1)
    for scheme in ("rediss", "amqps"):
        sender = Sender(make_app(f"{scheme}://127.0.0.1:{port}/1"), SIGNER)
        with pytest.raises(Unavailable, match="signed by nobody who is trusted here"):
            sender.connect()


def test_a_worker_and_a_scheduler_say_why_they_wait(house: House, refuse: Any) -> None:
    """And go on trying: a certificate that is renewed is believed without a restart."""
    port, ca = refuse("expired", 1)
    before = dict(house.variables)
    house.variables |= {"FABRIC_REDIS_CA": str(ca), "FABRIC_BROKER_CA": ""}
    try:
        for role, *words in (("scheduler", "scheduler"), ("worker-cpu", "worker", "cpu")):
            given = house.role(role)
            user, _, _ = given.pop("FABRIC_REDIS_URL").rpartition("@")
            given.pop("FABRIC_BROKER_URL", None)
            lines = [f"FABRIC_REDIS_URL={user}@127.0.0.1:{port}/0", *(f"{name}={given[name]}" for name in given)]
            (house.access / "lost.env").write_text("\n".join(lines))
            house.run("lost", sys.executable, "-m", "fabric.cli", *words, log=f"lost-{role}")
            until(lambda name=f"lost-{role}": "has expired: renew it" in house.said(name), house.logs)
            assert house.helpers[-1].poll() is None
            assert user.rpartition(":")[2] not in house.said(f"lost-{role}")
    finally:
        house.variables.clear()
        house.variables |= before
        house.end_helpers()


def test_who_speaks_no_tls_gets_nothing(house: House) -> None:
    url = house.role("gateway")["FABRIC_REDIS_URL"].replace("rediss://", "redis://")
    with redis.Redis.from_url(url, socket_timeout=10) as plain, pytest.raises(redis.RedisError):
        plain.ping()


@pytest.fixture(scope="module")
def tls_postgres(postgres_server: Postgres, authority: Authority) -> Iterator[int]:
    """The port of one that speaks TLS on 127.0.0.1."""
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory(prefix="fabric-pg-", dir="/tmp") as folder:
        server = Postgres(Path(folder), postgres_server.programs, postgres_server.user)
        files = [shutil.copy(path, folder) for path in authority.certify("127.0.0.1")]
        for path in (folder, *files):
            Path(path).chmod(0o700 if path == folder else 0o600)
            if server.user:
                shutil.chown(path, server.user)
        tls = ("ssl=on", f"ssl_cert_file={files[0]}", f"ssl_key_file={files[1]}")
        server.settings = ("listen_addresses=127.0.0.1", *tls)
        server.make()
        server.start(port)
        yield port
        server.crash()


def test_a_ledger_on_postgresql_is_known_by_its_certificate(
    tls_postgres: int, authority: Authority, tmp_path: Path
) -> None:
    other = Authority(tmp_path / "other")
    place = f"127.0.0.1:{tls_postgres}/postgres?sslmode=verify-full"
    ledger = Ledger(
        loaded(FABRIC_DATABASE_URL=f"postgresql://postgres@{place}&sslrootcert={authority.ca}").database_url
    )
    said = ledger.read(lambda c: c.execute(text("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")).scalar())
    assert said is True
    ledger.close()
    wrong = (f"{place}&sslrootcert={other.ca}", f"{place.replace('127.0.0.1', 'localhost')}&sslrootcert={authority.ca}")
    for elsewhere in wrong:
        refused = Ledger(loaded(FABRIC_DATABASE_URL=f"postgresql://me:{PASSWORD}@{elsewhere}").database_url, wait_s=2)
        with pytest.raises(Unavailable) as error:
            refused.read(lambda c: c.execute(text("SELECT 1")).scalar())
        assert PASSWORD not in error.value.message
        refused.close()


class TestSettings:
    def test_an_authority_without_tls_is_a_mistake(self, authority: Authority) -> None:
        with pytest.raises(ConfigError, match="FABRIC_REDIS_CA is for rediss:// and amqps://"):
            loaded(FABRIC_REDIS_URL=f"redis://:{PASSWORD}@store/0", FABRIC_REDIS_CA=str(authority.ca))
        with pytest.raises(ConfigError, match="FABRIC_BROKER_CA is for"):
            loaded(FABRIC_BROKER_URL="amqp://broker/x", FABRIC_BROKER_CA=str(authority.ca))

    def test_a_file_that_is_no_use_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "empty.pem").write_text("nothing")
        for name, why in (("empty.pem", "SSLError"), ("missing.pem", "No such file or directory")):
            with pytest.raises(ConfigError, match=rf"FABRIC_REDIS_CA: .*{name} can't be used: {why}"):
                loaded(FABRIC_REDIS_URL="rediss://store/0", FABRIC_REDIS_CA=str(tmp_path / name))

    def test_where_redis_is_the_broker_its_authority_counts_there(self, authority: Authority) -> None:
        known = loaded(FABRIC_REDIS_URL="rediss://store/0?health_check_interval=5", FABRIC_REDIS_CA=str(authority.ca))
        app = make_app(known.broker_url)
        assert app.conf.broker_use_ssl["ssl_ca_certs"] == str(authority.ca)
        assert "ssl_ca_certs" not in app.conf.broker_url
