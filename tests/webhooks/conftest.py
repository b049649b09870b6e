"""A receiver of webhooks on loopback, and a courier that is on its way."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from fabric.contracts.webhook import Webhook
from fabric.ledger import Ledger
from fabric.webhooks.courier import Courier, keys_of

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # of the specification's own example


@dataclass
class Receiver:
    """Keeps what it gets. ``answers``: statuses, the last one for good."""

    answers: list[int] = field(default_factory=lambda: [204])
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    location: str = ""
    server: ThreadingHTTPServer = field(init=False)
    _came: threading.Condition = field(default_factory=threading.Condition)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/hook"

    def wait_for(self, count: int) -> None:
        with self._came:
            assert self._came.wait_for(lambda: len(self.got) >= count, 60), f"{len(self.got)} of {count} came"

    def answer(self, headers: dict[str, str], body: bytes) -> int:
        with self._came:
            self.got.append((headers, body))
            self._came.notify_all()
            return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            self.send_response(receiver.answer({k.lower(): v for k, v in self.headers.items()}, body))
            if receiver.location:
                self.send_header("location", receiver.location)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    receiver.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=receiver.server.serve_forever, daemon=True).start()
    yield receiver
    receiver.server.shutdown()
    receiver.server.server_close()


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    ledger = Ledger(ledger_url)
    yield ledger
    ledger.close()


@pytest.fixture
def hook(receiver: Receiver) -> Webhook:
    return Webhook.model_validate(
        {
            "name": "ops",
            "url": receiver.url,
            "secret_env": "OPS_SECRET",
            "events": ["job.succeeded", "job.dead", "batch.completed"],
            "allow_private": True,
        }
    )


@pytest.fixture
def courier(ledger: Ledger) -> Callable[..., object]:
    @contextmanager
    def under_way(*hooks: Webhook, **options: object) -> Iterator[Courier]:
        keys = keys_of(hooks, {hook.secret_env: SECRET for hook in hooks})
        courier = Courier(ledger, hooks, keys, **{"look_s": 0.02, **options})  # type: ignore[arg-type]
        stop = threading.Event()
        thread = threading.Thread(target=courier.run, args=(stop,))
        thread.start()
        try:
            yield courier
        finally:
            stop.set()
            thread.join()

    return under_way


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]
