"""Starts a worker: the runtime, and the Celery worker that feeds it."""

from __future__ import annotations

import logging
import socket
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from celery import Celery
from celery.exceptions import CPendingDeprecationWarning, Reject
from celery.signals import worker_shutting_down
from celery.utils.log import get_task_logger

from fabric.broker import is_redis, make_app, queue
from fabric.contracts.catalog import Catalog, Deployment, PrivacyRules
from fabric.contracts.errors import Unavailable
from fabric.contracts.message import TASK
from fabric.contracts.zones import WorkerKeys
from workers.consumer import Consumer
from workers.runtime import Runtime
from workers.wall import Wall

log = logging.getLogger(__name__)

#: Threads that claim, and messages that are in their hands. Claiming takes about a millisecond, so two
#: are enough for one deployment; the second pair lets others through while one waits for room.
_CLAIMING_THREADS = 2


def run(
    *,
    redis_url: str,
    broker_url: str,
    tier: str,
    deployments: Sequence[Deployment],
    keys: WorkerKeys,
    name: str | None = None,
    grace_s: float = 60.0,
    log_level: str = "INFO",
    privacy: PrivacyRules | None = None,
    renewed: Callable[[], Catalog | None] = lambda: None,
) -> int:
    """Runs until SIGTERM or SIGINT; answers the exit status. ``keys``: of the zones of all deployments. ``privacy``:
    the rules of the labels, until ``renewed`` answers a catalogue with others; without them those of a fabric that
    nobody has configured.

    Raises:
        ConfigError: an engine can't work as configured. Nothing was taken.
    """
    runtime = Runtime(redis_url, tier, deployments, keys, Wall(privacy or PrivacyRules(), renewed))
    runtime.start()
    app = make_app(broker_url, tier=tier)
    app.conf.task_queues = [queue(d) for d in deployments]
    register(app, runtime)

    def draining(**_: Any) -> None:
        runtime.drain()

    worker_shutting_down.connect(draining, weak=False)
    # Claims and acknowledgements are no news; a line per message would hide what is.
    logging.getLogger("celery.worker.strategy").setLevel(logging.WARNING)
    logging.getLogger("celery.app.trace").setLevel(logging.WARNING)
    get_task_logger(TASK).setLevel(logging.WARNING)
    celery_worker = app.Worker(
        hostname=f"{name or tier}-{runtime.id[-6:]}@{socket.gethostname()}",
        pool="threads",
        concurrency=_CLAIMING_THREADS * (1 + len(deployments)),
        consumer_cls=partial(
            Consumer,
            deployments=deployments,
            schedulers=keys.schedulers,
            set_aside=runtime.set_aside,
            redis=is_redis(broker_url),
        ),
        loglevel=log_level,
        without_gossip=True,
        without_mingle=True,
        task_events=True,
        quiet=True,
    )
    # After Celery has set its own filters: ours have long been acknowledged when the broker is lost.
    warnings.filterwarnings("ignore", category=CPendingDeprecationWarning)
    log.info("worker %s on tier %s: %s", runtime.id, tier, ", ".join(d.name for d in deployments))
    try:
        celery_worker.start()
    finally:
        runtime.stop(grace_s)
    return int(celery_worker.exitcode or 0)


def register(app: Celery, runtime: Runtime) -> None:
    """Makes ``fabric.run`` the app's one task of ours."""

    def fabric_run(deployment: str, jobs: list[Any]) -> int:
        try:
            return runtime.receive(deployment, jobs)
        except Unavailable as error:
            raise Reject(error.message, requeue=True) from None

    app.task(name=TASK, ignore_result=True)(fabric_run)
