"""What is sent, how it is read again, and what is not taken for it."""

from __future__ import annotations

import itertools
import json
import socket
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu import Connection, Consumer
from kombu.message import Message

from fabric import broker
from fabric.broker import BODY_LIMIT, BadMessage, Sender, is_redis, make_app, queue, read
from fabric.contracts.catalog import Deployment
from fabric.contracts.errors import Unavailable
from fabric.contracts.message import CHUNK_LIMIT, Chunk
from fabric.contracts.sealed import about
from fabric.contracts.secret import Secrets
from fabric.contracts.signed import Signer

if TYPE_CHECKING:
    from tests.conftest import RabbitMQ, Valkey

_numbers = itertools.count()
SIGNER = Signer.of(Secrets.passing())


@pytest.fixture(params=["valkey", "rabbitmq"])
def url(request: pytest.FixtureRequest) -> str:
    server: Any = request.getfixturevalue(request.param)
    return str(server.broker_url if request.param == "valkey" else server.url)


@pytest.fixture
def deployment() -> Deployment:
    """With a queue that no other test knows."""
    return Deployment(name=f"messages-{next(_numbers)}", engine="mock", tier="cpu")


@pytest.fixture
def sender(url: str) -> Iterator[Sender]:
    sender = Sender(make_app(url), SIGNER)
    yield sender
    sender.close()


def chunk(count: int = 1, deployment: str = "d") -> Chunk:
    return Chunk(deployment=deployment, jobs=tuple((f"job_{n:026}", n + 1) for n in range(count)))


def received(url: str, deployment: Deployment, count: int = 1) -> list[Message]:
    messages: list[Message] = []
    with Connection(url, transport_options={"visibility_timeout": 300}) as connection:

        def keep(message: Message) -> None:
            message.accept = {"application/json"}
            messages.append(message)
            message.ack()

        with Consumer(connection, [queue(deployment)], on_message=keep, accept=["json"], auto_declare=False):
            while len(messages) < count:
                connection.drain_events(timeout=30)
    return messages


def read_(message: Message, queue_name: str = "fabric.cpu.d") -> Chunk:
    return read(message, queue_name, SIGNER.verifier)


class TestSending:
    def test_what_is_sent_is_read(self, url: str, sender: Sender, deployment: Deployment) -> None:
        sender.send([(deployment, chunk(1)), (deployment, chunk(CHUNK_LIMIT))])
        messages = received(url, deployment, 2)
        assert [read_(message, deployment.queue) for message in messages] == [chunk(1), chunk(CHUNK_LIMIT)]
        assert max(len(message.body) for message in messages) < BODY_LIMIT / 4
        with pytest.raises(BadMessage, match="not signed"):
            read_(messages[0], "fabric.cpu.another")

    def test_tools_are_shown_ids_and_not_too_many(self, url: str, sender: Sender, deployment: Deployment) -> None:
        sender.send([(deployment, chunk(9, "small"))])
        (message,) = received(url, deployment)
        shown = message.headers["kwargsrepr"]
        assert shown.startswith("small: job_00000000000000000000000000#1, ")
        assert shown.endswith(" and 5 more")
        assert message.headers["argsrepr"] == "()"

    def test_messages_survive_a_restart_of_the_broker(self, url: str, sender: Sender, deployment: Deployment) -> None:
        sender.send([(deployment, chunk())])
        assert received(url, deployment)[0].properties["delivery_mode"] == 2

    def test_sending_goes_on_after_the_connection_was_closed(
        self, url: str, sender: Sender, deployment: Deployment
    ) -> None:
        sender.send([(deployment, chunk())])
        sender.close()
        sender.send([(deployment, chunk())])
        assert len(received(url, deployment, 2)) == 2


class TestABrokerThatIsAway:
    @pytest.mark.parametrize("url", ["redis://127.0.0.1:1/0", "redis+socket:///nowhere/at/all", "amqp://127.0.0.1:1//"])
    def test_is_said_so(self, url: str) -> None:
        sender = Sender(make_app(url), SIGNER)
        with pytest.raises(Unavailable, match="The broker doesn't take messages"):
            sender.connect()
        with pytest.raises(Unavailable):
            sender.send([(Deployment(name="d", engine="mock", tier="cpu"), chunk())])

    def test_and_used_when_it_is_back(self, valkey: Valkey, deployment: Deployment) -> None:
        sender = Sender(make_app(valkey.broker_url), SIGNER)
        sender.send([(deployment, chunk())])
        valkey.kill()
        with pytest.raises(Unavailable):
            sender.send([(deployment, chunk())])
        valkey.start()
        sender.send([(deployment, chunk())])
        assert len(received(valkey.broker_url, deployment, 2)) == 2
        sender.close()

    def test_the_passwords_are_not_in_the_error(self) -> None:
        sender = Sender(make_app("amqp://someone:hunter2@127.0.0.1:1//"), SIGNER)
        with pytest.raises(Unavailable) as caught:
            sender.connect()
        assert "hunter2" not in str(caught.value)


class TestRabbitMQ:
    def test_a_connection_that_was_lost_meanwhile_is_replaced_before_anything_is_sent(
        self, rabbitmq: RabbitMQ, deployment: Deployment
    ) -> None:
        sender = Sender(make_app(rabbitmq.url), SIGNER)
        sender.send([(deployment, chunk())])
        assert sender._connection is not None
        sender._connection.connection.sock.shutdown(socket.SHUT_RDWR)
        sender.connect()
        sender.send([(deployment, chunk())])
        assert len(received(rabbitmq.url, deployment, 2)) == 2
        sender.close()

    def test_an_idle_connection_stays(self, rabbitmq: RabbitMQ, deployment: Deployment) -> None:
        """Nobody reads it while nothing is sent: heartbeats would end it."""
        sender = Sender(make_app(rabbitmq.url), SIGNER)
        sender.connect()
        assert sender._connection is not None
        assert not sender._connection.get_heartbeat_interval()
        sender.close()

    def test_a_rejected_message_is_kept_in_the_tiers_dead_letter_queue(self, rabbitmq: RabbitMQ) -> None:
        deployment = Deployment(name=f"messages-{next(_numbers)}", engine="mock", tier="gpu")
        sender = Sender(make_app(rabbitmq.url), SIGNER)
        sender.send([(deployment, chunk())])
        sender.close()
        with Connection(rabbitmq.url) as connection:
            channel = connection.default_channel
            message = channel.basic_get(deployment.queue, no_ack=False)
            channel.basic_reject(message.delivery_tag, requeue=False)
            dead = None
            while dead is None:
                dead = channel.basic_get("fabric.gpu.dead", no_ack=True)
            channel.queue_delete("fabric.gpu.dead")
        assert json.loads(dead.body)[1]["jobs"] == [["job_00000000000000000000000000", 1]]
        assert dead.headers["x-death"][0]["queue"] == deployment.queue


HEADERS = {
    "lang": "py",
    "task": "fabric.run",
    "id": "evt_1",
    "root_id": "evt_1",
    "parent_id": None,
    "group": None,
    "retries": 0,
    "eta": None,
    "expires": None,
    "timelimit": [None, None],
    "argsrepr": "()",
    "kwargsrepr": "d: job_1#1",
    "origin": "scheduler@here",
    "ignore_result": True,
}
BODY = [[], {"deployment": "d", "jobs": [["job_1", 1]]}, {}]


def message(
    body: Any = BODY, headers: Any = HEADERS, content_type: str = "application/json", raw: bytes | None = None
) -> Message:
    """Signed unless it has a signature, whatever it is."""
    raw = json.dumps(body).encode() if raw is None else raw
    if isinstance(headers, dict) and "signature" not in headers:
        headers = signed(headers, raw)
    found = Message(
        body=raw,
        content_type=content_type,
        content_encoding="utf-8",
        headers=headers,
        properties={},
        accept={"application/json"},
    )
    found.headers = headers  # kombu makes {} of None
    return found


def signed(headers: dict[str, Any], body: bytes, queue_name: str = "fabric.cpu.d") -> dict[str, Any]:
    names = (str(headers.get(name)) for name in ("id", "root_id", "kwargsrepr", "origin"))
    return headers | {"signature": SIGNER.sign(about("message", queue_name, *names) + body)}


class TestReading:
    def test_one_of_ours(self) -> None:
        assert read_(message()) == Chunk(deployment="d", jobs=(("job_1", 1),))

    def test_what_others_add_to_the_headers_does_no_harm(self) -> None:
        assert read_(message(headers=HEADERS | {"x-delivery-count": 2, "traceparent": "00-1"}))

    @pytest.mark.parametrize("headers", [None, {}, [], {"task": "other"}, {"task": ["fabric.run"]}])
    def test_another_task(self, headers: Any) -> None:
        with pytest.raises(BadMessage, match="unknown task"):
            read_(message(headers=headers))

    @pytest.mark.parametrize("missing", sorted(set(HEADERS) - {"task"}))
    def test_a_header_is_missing(self, missing: str) -> None:
        with pytest.raises(BadMessage, match="unexpected headers"):
            read_(message(headers={name: value for name, value in HEADERS.items() if name != missing}))

    @pytest.mark.parametrize(
        "wrong",
        [
            {"eta": "2030-01-01T00:00:00"},
            {"expires": 1},
            {"retries": 1},
            {"timelimit": [1, 1]},
            {"id": 5},
            {"group": "g"},
        ],
    )
    def test_a_header_that_makes_celery_do_something(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(BadMessage, match="unexpected headers"):
            read_(message(headers=HEADERS | wrong))

    @pytest.mark.parametrize(
        "how",
        [
            {"raw": b"{"},
            {"raw": b""},
            {"raw": b"\xff"},
            {"body": {}},
            {"body": [[], {}]},
            {"content_type": "application/x-python-serialize"},
            {"content_type": "application/data"},
        ],
    )
    def test_a_body_that_is_not_ours(self, how: dict[str, Any]) -> None:
        with pytest.raises(BadMessage):
            read_(message(**how))

    @pytest.mark.parametrize(
        "body",
        [
            [["d"], BODY[1], {}],
            [[], BODY[1], {"callbacks": [{"task": "other"}]}],
            [[], {}, {}],
            [[], {"deployment": "d", "jobs": []}, {}],
            [[], {"deployment": "d", "jobs": [["job_1"]]}, {}],
            [[], {"deployment": "d", "jobs": [["job_1", "my secret"]]}, {}],
            [[], {"deployment": "d", "jobs": [["job_1", 1]] * (CHUNK_LIMIT + 1)}, {}],
            [[], {"deployment": "d", "jobs": [["job_1", 1]], "prompt": "my secret"}, {}],
        ],
    )
    def test_arguments_that_are_not_ours(self, body: Any) -> None:
        with pytest.raises(BadMessage, match="unexpected arguments") as caught:
            read_(message(body))
        assert "my secret" not in str(caught.value)
        assert caught.value.__cause__ is None

    @pytest.mark.parametrize(
        "altered",
        [{"id": "evt_2"}, {"root_id": "evt_2"}, {"kwargsrepr": "something else"}, {"origin": "\ud800"}],
    )
    def test_altered_headers(self, altered: dict[str, Any]) -> None:
        signature = message().headers["signature"]
        with pytest.raises(BadMessage, match="not signed"):
            read_(message(headers=HEADERS | altered | {"signature": signature}))

    def test_an_altered_body_or_another_queue(self) -> None:
        ours = message()
        with pytest.raises(BadMessage, match="not signed"):
            read_(message([[], {"deployment": "d", "jobs": [["job_2", 1]]}, {}], headers=ours.headers))
        with pytest.raises(BadMessage, match="not signed"):
            read_(ours, "fabric.gpu.d")

    @pytest.mark.parametrize("signature", [None, 5, "", "A" * 96, "é" * 96, "%" * 96, ["x"]])
    def test_what_is_no_signature(self, signature: Any) -> None:
        with pytest.raises(BadMessage, match="not signed"):
            read_(message(headers=HEADERS | {"signature": signature}))

    def test_a_body_that_is_too_long_isnt_looked_at(self) -> None:
        with pytest.raises(BadMessage, match="too long"):
            read_(message(raw=b"[" * (BODY_LIMIT + 1)))

    @pytest.mark.parametrize("how", ["gzip", "application/x-gzip", "bzip2", "lzma", "zstd", "brotli", "unheard-of"])
    def test_nothing_is_unpacked(self, how: str) -> None:
        packed = zlib.compress(b"[" * 10_000_000)
        found = Message(body=packed, content_type="application/json", headers=HEADERS | {"compression": how})
        assert found.body == packed
        with pytest.raises(BadMessage, match="unreadable body"):
            read_(found)

    json_values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(("deployment", "jobs")), inner),
        max_leaves=10,
    )

    @given(json_values)
    def test_nothing_but_a_bad_message_comes_of_any_body(self, body: Any) -> None:
        try:
            found = read_(message(body))
        except BadMessage:
            return
        assert found.jobs


def test_the_app_is_made_from_the_settings_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FABRIC_BROKER_URL", "amqp://guest@rabbit//")
    for name in ("app", "celery"):
        monkeypatch.delitem(broker.__dict__, name, raising=False)
    assert broker.app.conf.broker_url == "amqp://guest@rabbit//"
    assert broker.celery is broker.app
    for name in ("app", "celery"):
        monkeypatch.delitem(broker.__dict__, name)
    with pytest.raises(AttributeError):
        broker.nothing  # noqa: B018


@pytest.mark.parametrize(
    ("url", "redis"),
    [
        ("redis://h/0", True),
        ("rediss://h/0", True),
        ("redis+socket:///s", True),
        ("amqp://h", False),
        ("amqps://h", False),
    ],
)
def test_which_broker_it_is(url: str, redis: bool) -> None:
    assert is_redis(url) is redis
