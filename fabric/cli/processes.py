"""The processes of the fabric, one command each. ``fabric up`` runs all of them."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fabric.cli import open_files
from fabric.cli.start import begin, config_option, host_option, port_option
from fabric.contracts.catalog import Catalog, Deployment
from fabric.contracts.completion import Completion
from fabric.contracts.errors import ConfigError

if TYPE_CHECKING:
    from fabric.settings import Settings
    from fabric.store.disk import Disk

log = logging.getLogger(__name__)

#: Options of a vLLM that the worker starts itself: they mean nothing to one that runs already.
_FOR_A_CHILD = frozenset(("args", "command", "env", "stop_timeout_s"))

#: Engines with a connection for each request in flight, and how many of these where the deployment doesn't say.
_BEHIND_HTTP, _SLOTS = frozenset(("vllm", "openai", "anthropic")), 512
#: What a worker has open besides: stores, brokers, logs.
_FILES = 128

#: How long the doors wait with a changed configuration file, so that no scheduler meets a job of a model that it
#: doesn't know yet.
_SCHEDULERS_FIRST_S = 3.0
#: How long an idle connection stays open: longer than clients keep theirs, so that no request meets a
#: connection that is just being closed.
_KEEP_ALIVE_S = 75


@click.command()
@config_option
@host_option
@port_option
@click.option("--fd", type=int, hidden=True, help="A listening socket that is already open.")
def api(config: Path | None, host: str | None, port: int | None, fd: int | None) -> None:
    """Run the HTTP API."""
    from fabric.cli import listen

    settings = begin(config, host=host, port=port)
    listen.guarded(settings, lambda: listen.any_keys(settings))
    import uvicorn

    from fabric.gateway import BoundedHttp, GatewaySettings, create_app
    from fabric.settings.secret import secrets_of
    from fabric.settings.watch import Watch
    from fabric.tracing import tracer

    spans = tracer(os.environ, "api")
    cert, key = listen.certificate(settings) or (None, None)

    gateway = GatewaySettings(
        catalog=settings.catalog,
        redis_url=settings.redis_url,
        database_url=settings.database_url,
        files_dir=settings.files_dir,
        watch=Watch(settings, wait_s=_SCHEDULERS_FIRST_S),
        disk=_disk(settings),
        secrets=secrets_of(settings),
        may_be_open=settings.allow_open or listen.only_loopback(settings.host),
        tracer=spans,
    )
    app = create_app(gateway)
    listener = listen.bind(settings.host, settings.port) if fd is None else socket.socket(fileno=fd)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            loop="uvloop",
            http=BoundedHttp,
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            ssl_certfile=cert,
            ssl_keyfile=key,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=max(1, round(settings.drain_s)),
        )
    )
    app.stopping = lambda: server.should_exit
    log.info("the API listens on %s", listen.url(listener, tls=cert is not None))
    try:
        server.run(sockets=[listener])
    finally:
        if spans:
            spans.close()
    if not server.started:
        sys.exit(1)


@click.command()
@config_option
def scheduler(config: Path | None) -> None:
    """Run the scheduler."""
    settings = begin(config)
    from fabric.settings.watch import Watch
    from fabric.settings.zone_keys import scheduler_keys
    from scheduler import service

    service.run(
        redis_url=settings.redis_url,
        broker_url=settings.broker_url,
        catalog=settings.catalog,
        signer=scheduler_keys(settings),
        stop=_stop_on_signals(),
        renewed=Watch(settings).look,
    )


@click.command()
@click.argument("tier", type=click.Choice(["cpu", "gpu", "cloud"]))
@config_option
@click.option("--name", help="How Celery's tools show this worker. [default: the tier]")
@click.option("--model", help="Serve only deployments of this model: its logical name, or the engine's. [default: all]")
@click.option("--engine-url", help="vLLM that runs already, such as http://gpu-1:8000; else the worker starts it.")
def worker(tier: str, config: Path | None, name: str | None, model: str | None, engine_url: str | None) -> int:
    """Run a worker of one tier: cpu, gpu or cloud."""
    settings = begin(config)
    from celery.exceptions import SecurityWarning

    from fabric.settings.watch import Watch
    from fabric.settings.zone_keys import worker_keys
    from workers import service

    # Celery warns of root because of pickled messages; ours are JSON and nothing else is accepted.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    deployments = _served(settings.catalog, tier, model)
    if engine_url:
        deployments = [_attached(deployment, engine_url) for deployment in deployments]
    sockets = sum(deployment.slots or _SLOTS for deployment in deployments if deployment.engine in _BEHIND_HTTP)
    open_files.warn_below(sockets + _FILES, "its deployments")
    return service.run(
        redis_url=settings.redis_url,
        broker_url=settings.broker_url,
        tier=tier,
        deployments=deployments,
        keys=worker_keys(settings, {deployment.zone for deployment in deployments}),
        name=name,
        grace_s=settings.drain_s,
        log_level=settings.log_level,
        privacy=settings.catalog.privacy,
        renewed=Watch(settings).look,
    )


def _served(catalog: Catalog, tier: str, model: str | None) -> list[Deployment]:
    """
    Raises:
        ConfigError: there is none.
    """
    of_tier = [(m.name, d) for m in catalog.models for d in m.deployments if d.tier == tier]
    if not of_tier:
        raise ConfigError(f"The catalogue has no deployment of tier {tier}: add one to `models` in fabric.yaml.")
    served = [d for name, d in of_tier if model in (None, name, d.name, d.model)]
    if not served:
        there_is = ", ".join(sorted({d.model or name for name, d in of_tier}))
        raise ConfigError(f"The catalogue has no deployment of {model} on tier {tier}; there is {there_is}.")
    return served


def _attached(deployment: Deployment, url: str) -> Deployment:
    """The same deployment on a server that somebody else runs.

    Raises:
        ConfigError: its engine is none that could run elsewhere.
    """
    if deployment.engine != "vllm":
        raise ConfigError(f"--engine-url is for vLLM; {deployment.name} runs on {deployment.engine}.")
    options = {name: value for name, value in deployment.options.items() if name not in _FOR_A_CHILD}
    return deployment.model_copy(update={"base_url": url, "options": options})


@click.command()
@config_option
def recorder(config: Path | None) -> None:
    """Run the recorder: from finished jobs to the ledger. It also leads batches from file to file."""
    settings = begin(config)
    from fabric.accounting import Bookkeeper
    from fabric.accounting.budget_keeper import BudgetKeeper
    from fabric.batches import wake
    from fabric.batches.service import BatchService
    from fabric.batches.storage import Storage
    from fabric.cli import boundaries
    from fabric.contracts.job_seals import HomeSeals
    from fabric.contracts.sealed import Seals
    from fabric.ledger import Ledger
    from fabric.recorder import Recorder
    from fabric.settings.secret import secrets_of
    from fabric.settings.watch import Watch
    from fabric.store import Store
    from fabric.tracing import job_spans, tracer
    from fabric.trail import Trail
    from fabric.webhooks import Courier, announce, keys_of, tell_of_budgets

    courier_keys = keys_of(settings.webhooks, os.environ)
    spans = tracer(os.environ, "recorder")
    engines = _engines(settings.catalog)
    stop = _stop_on_signals()
    ledger = Ledger(settings.database_url)
    # Each thread waits on its own connection.
    recording, feeding, keeping, budgeting = (Store(settings.redis_url) for _ in range(4))
    secrets = secrets_of(settings)
    home = HomeSeals(secrets)
    trail = Trail(Ledger(settings.database_url, connections=1), secrets, Store(settings.redis_url))

    def ended(completion: Completion) -> None:
        boundaries.note_blocked(trail, completion)
        if spans and completion.spec.trace:
            spans.export(job_spans(completion, engines))

    into_ledger = Recorder(
        recording,
        ledger,
        home,
        catalog=settings.catalog,
        recorded=lambda: recording(wake.wake()),
        ended=ended,
        announce=announce(settings.webhooks),
    )
    watch = Watch(settings, wait_s=_SCHEDULERS_FIRST_S)
    books = Bookkeeper(keeping, ledger, settings.catalog, retention_days=settings.usage_retention_days)
    budgets = BudgetKeeper(budgeting, ledger, settings.catalog, told=tell_of_budgets(ledger, settings.webhooks))
    courier = Courier(ledger, settings.webhooks, courier_keys)

    def renewed() -> Catalog | None:
        catalog = boundaries.noted_policy(trail, watch.look())
        if catalog is not None:
            into_ledger.renew(catalog)
            engines.update(_engines(catalog))
            books.renew(catalog)
            budgets.renew(catalog)
        return catalog

    service = BatchService(
        feeding,
        ledger,
        Storage(settings.files_dir, Seals(secrets)),
        home,
        settings.catalog,
        renewed=renewed,
        raised=lambda batch, asked, got: boundaries.note_raised_line(trail, batch, asked, got),
        redacted=lambda batch, spec: boundaries.note_redacted_line(trail, batch, spec),
        sampler=spans.sampler if spans else None,
        disk=_disk(settings),
    )
    log.info("the recorder is %s", into_ledger.name)
    boundaries.noted_policy(trail, settings.catalog)
    trail.start()
    try:
        _run_together(stop, into_ledger.run, service.run, books.run, budgets.run, courier.run)
    finally:
        for part in (trail, recording, feeding, keeping, budgeting, ledger):
            part.close()
        if spans:
            spans.close()


def _disk(settings: Settings) -> Disk | None:
    """Of the store that ``fabric up`` runs: that of any other is its operator's to watch."""
    from fabric.store.disk import Disk

    return Disk(settings.data_dir, settings.disk_reserve_mb * 2**20) if settings.socket else None


def _engines(catalog: Catalog) -> dict[str, str]:
    return {name: deployment.engine for name, deployment in catalog.by_deployment.items()}


def _run_together(stop: threading.Event, *works: Callable[[threading.Event], None]) -> None:
    """One thread each, until ``stop`` is set. If one fails the others are stopped, and the failure is raised."""
    with ThreadPoolExecutor(len(works)) as threads:
        running = [threads.submit(work, stop) for work in works]
        wait(running, return_when=FIRST_COMPLETED)
        stop.set()
        for one in running:
            one.result()


@click.command()
@config_option
def migrate(config: Path | None) -> None:
    """Bring the ledger's tables up to date."""
    settings = begin(config)
    from fabric.ledger import upgrade

    upgrade(settings.database_url)
    log.info("the ledger's tables are up to date")


def _stop_on_signals() -> threading.Event:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop
