"""Whether the fabric's process in this container is well. The health checks of the images call it:

    python health.py api             GET /health/ready is answered with 200
    python health.py worker gpu      the heartbeat of a worker of this host is fresh
    python health.py recorder        a reader of this host is at the completion stream
    python health.py scheduler       the loop of the scheduler goes round

Exit status 0 is well; 1 is not, with the reason on stderr. With ``--live`` only what a restart would mend
counts: a job store that is away is no reason to restart those who wait for it.

A worker and a recorder are asked where it matters, in the store: that is what the scheduler goes by. It
costs about half a second of CPU, so ask every half a minute; ``celery inspect ping`` costs twice that, and
a message to every worker.
"""

from __future__ import annotations

import argparse
import http.client
import logging
import os
import socket
import ssl
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from fabric.contracts.worker import WorkerInfo
    from fabric.store import Store

T = TypeVar("T")

#: Heartbeats come every second, readers read every second; less would mistake a busy machine for a dead one.
_FRESH_MS = 15_000
#: The scheduler's loop goes round once a second, or in five when the store's network swallows everything.
_ROUND_S = 8.0
_HTTP_S = 4.0


class NotWell(Exception):
    """The process doesn't do its work."""


class StoreAway(NotWell):
    """The job store doesn't answer, so nobody can say how the process is."""


def api(live: bool) -> None:
    port = int(os.environ.get("FABRIC_PORT") or 8080)
    connection = _connection(port)
    try:
        connection.request("GET", "/health/live" if live else "/health/ready")
        status = connection.getresponse().status
    except OSError as error:
        raise NotWell(f"nothing answers on port {port}: {error}") from error
    finally:
        connection.close()
    if status != 200:
        raise NotWell(f"the API answers {status}")


def _connection(port: int) -> http.client.HTTPConnection:
    if not os.environ.get("FABRIC_TLS_CERT"):
        return http.client.HTTPConnection("127.0.0.1", port, timeout=_HTTP_S)
    # This container's own gateway: the name in its certificate is for those who come from elsewhere.
    unchecked = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unchecked.check_hostname = False
    unchecked.verify_mode = ssl.CERT_NONE
    return http.client.HTTPSConnection("127.0.0.1", port, timeout=_HTTP_S, context=unchecked)


def worker(tier: str) -> None:
    if not any(info.tier == tier and info.hostname == socket.gethostname() for info in _asked(_beating)):
        raise NotWell(f"no worker of tier {tier} on this host had a heartbeat within {_FRESH_MS} ms")


def _beating(store: Store) -> list[WorkerInfo]:
    """Not by the scheduler's look at everything: a worker's user may see no backlog."""
    from fabric.store import reads

    seconds, _ = store.redis.time()
    ids = store(reads.beating(seconds * 1000 - _FRESH_MS))
    return [info for worker_id in ids if (info := store(reads.worker(worker_id))) is not None]


def recorder() -> None:
    from redis.exceptions import ResponseError

    from fabric.store.reads import COMPLETIONS

    try:
        readers = _asked(lambda store: store.redis.xinfo_consumers(COMPLETIONS, "recorder"))
    except ResponseError:
        readers = []  # the first reader of a new store hasn't come yet
    own = f"{socket.gethostname()}-".encode()
    if not any(reader["name"].startswith(own) and reader["idle"] < _FRESH_MS for reader in readers):
        raise NotWell(f"no recorder on this host has read within {_FRESH_MS} ms")


def _asked(question: Callable[[Store], T]) -> T:
    from redis.exceptions import RedisError, ResponseError

    from fabric import settings
    from fabric.contracts.errors import Unavailable
    from fabric.store import Store

    store = Store(settings.load().redis_url, timeout_s=3.0)
    try:
        return question(store)
    except ResponseError:
        raise
    except (Unavailable, RedisError, OSError) as error:
        raise StoreAway("the job store doesn't answer") from error
    finally:
        store.close()


def scheduler(pid: int | None) -> None:
    """Its main thread sleeps and wakes in every round: the kernel counts that, whether the store is there or not."""
    pid = pid or _find("scheduler")
    before = _sleeps(pid)
    limit = time.monotonic() + _ROUND_S
    while _sleeps(pid) == before:
        if time.monotonic() > limit:
            raise NotWell(f"the scheduler's loop has stood still for {_ROUND_S:g} s")
        time.sleep(0.1)


def _sleeps(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/task/{pid}/status").read_text().splitlines()
    except OSError:
        raise NotWell("the scheduler's process has gone") from None
    return sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches:"))


def _find(command: str) -> int:
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if command in words[1:] and "health.py" not in " ".join(words):
            return int(folder.name)
    raise NotWell(f"no `fabric {command}` runs here")


def main() -> int:
    parser = argparse.ArgumentParser(description="Whether the fabric's process in this container is well.")
    parser.add_argument("role", choices=("api", "scheduler", "recorder", "worker"))
    parser.add_argument("tier", nargs="?", choices=("cpu", "gpu", "cloud"), help="of a worker")
    parser.add_argument("--live", action="store_true", help="only what a restart would mend")
    parser.add_argument("--pid", type=int, help="the scheduler's process, where more than one runs")
    asked = parser.parse_args()
    if (asked.role == "worker") != (asked.tier is not None):
        parser.error("a worker has a tier, the others have none")
    logging.disable()  # what there is to say of the settings, the processes have said
    try:
        match asked.role:
            case "api":
                api(asked.live)
            case "scheduler":
                scheduler(asked.pid)
            case "recorder":
                recorder()
            case _:
                worker(asked.tier)
    except StoreAway as away:
        if not asked.live:
            print(away, file=sys.stderr)
            return 1
    except NotWell as reason:
        print(reason, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
