"""Raw Celery, as its users run it: one message a job of 1 KB that does nothing, its result stored.

    python -m benchmarks.celery_noop BROKER_URL RESULT_URL          the worker: threads pool

On a Valkey of its own with the settings of the fabric's embedded one. The task answers nothing, so what is stored is
the least that Celery stores.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import redis
from celery import Celery
from celery.result import ResultSet

from benchmarks.processes import Void, module, program, until
from fabric.store import embedded

TASK = "bench.noop"
_PAYLOAD = "x" * 1_000
#: 16 and 64 made no difference: they take turns at the interpreter's lock.
_THREADS = 4
_START_S = 60.0
_DRAIN_S = 300.0


def _app(broker_url: str, result_url: str) -> Celery:
    app = Celery("noop", broker=broker_url, backend=result_url, set_as_current=False)
    app.conf.update(task_serializer="json", accept_content=["json"], result_expires=600)
    return app


class RawCelery:
    def __init__(self, app: Celery) -> None:
        self._app = app

    def drain(self, jobs: int) -> float:
        """Seconds from the first send to the last result."""
        started = time.perf_counter()
        results = [self._app.send_task(TASK, (_PAYLOAD,)) for _ in range(jobs)]
        ResultSet(results, app=self._app).join_native(timeout=_DRAIN_S)
        return time.perf_counter() - started


@contextmanager
def raw_celery() -> Iterator[RawCelery]:
    """A Valkey and a Celery worker that has proved that it works."""
    with tempfile.TemporaryDirectory(prefix="fabric-bench-", dir="/tmp") as name:
        folder = Path(name)
        socket = folder / "s"
        with _valkey(socket, folder):
            urls = embedded.broker_url(socket), f"redis+socket://{socket}?virtual_host=2"
            with module("benchmarks.celery_noop", *urls, log=folder / "worker.log"):
                celery = RawCelery(_app(*urls))
                celery.drain(100)
                yield celery


@contextmanager
def _valkey(socket: Path, folder: Path) -> Iterator[None]:
    with (
        program(embedded.server_command(socket, folder)) as server,
        redis.Redis(unix_socket_path=str(socket)) as client,
    ):

        def answers() -> bool:
            if server.poll() is not None:
                raise Void("Valkey ended at once")
            with suppress(redis.ConnectionError):
                return bool(client.ping())
            return False

        until(answers, within_s=_START_S, missing="Valkey doesn't answer")
        yield


def main(broker_url: str, result_url: str) -> None:
    app = _app(broker_url, result_url)

    def noop(payload: str) -> None:
        """Nothing."""

    app.task(name=TASK)(noop)
    worker = app.Worker(
        pool="threads", concurrency=_THREADS, loglevel="WARNING", without_gossip=True, without_mingle=True
    )
    worker.start()


if __name__ == "__main__":
    main(*sys.argv[1:])
