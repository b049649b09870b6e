"""What ``fabric doctor`` looks at: one function a part, each answers what it found. Nothing is changed."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fabric.cli import checkup_places
from fabric.cli.finding import Finding
from fabric.cli.listen import any_keys, guarded
from fabric.cli.on_ledger import has_tables, quiet
from fabric.contracts.errors import FabricError, where
from fabric.contracts.tls import distrust
from fabric.settings import Settings, load

#: Less free disk than this, in bytes, is soon none: the store's log and the ledger grow with every job.
_LITTLE_DISK = 2**30
#: Deadlines and heartbeats are read on Redis' clock, schedules on each machine's own.
_SKEW_S = 1.0
_ANSWER_S = 3
_REDIS, _VALKEY = (7, 0), (7, 2)
_GIB = 2**30


def examine(config: Path | None, given: Mapping[str, str]) -> list[Finding]:
    """Everything, part by part. A part that can't be looked at is a finding, too."""
    with quiet("fabric"):  # what is wrong is said here, once
        return _examined(config, given)


def _examined(config: Path | None, given: Mapping[str, str]) -> list[Finding]:
    findings = [_python()]
    try:
        settings = load(config, given)
    except FabricError as error:
        return [*findings, Finding("configuration", "error", "can't be read", error.message)]
    for part, check in _CHECKS.items():
        try:
            findings += check(settings, given)
        except FabricError as error:
            findings.append(Finding(part, "error", "doesn't work", error.message))
        except Exception as error:  # noqa: BLE001 - one part that trips a bug must not hide the others
            said = f"can't be checked ({type(error).__name__}{where(error)})"
            findings.append(Finding(part, "error", said))
    return findings


def _python() -> Finding:
    packages = ", ".join(f"{name} {version(name)}" for name in ("inference-fabric", "celery", "redis"))
    return Finding("software", "ok", f"Python {platform.python_version()}, {packages}")


def _configuration(settings: Settings, given: Mapping[str, str]) -> Iterator[Finding]:
    catalog = settings.catalog
    deployments = [deployment for model in catalog.models for deployment in model.deployments]
    source = settings.config or "the defaults, without a file"
    yield Finding("configuration", "ok", f"{source}: {len(catalog.models)} models, {len(deployments)} deployments")
    for deployment in deployments:
        if deployment.tier == "cloud" and deployment.engine != "mock" and not deployment.price.version:
            said = f"no price is known of {deployment.name}"
            todo = "Give it a `price`: without one it counts as free, and `cheapest` prefers it."
            yield Finding("configuration", "warning", said, todo)


def _data_directory(settings: Settings, given: Mapping[str, str]) -> Iterator[Finding]:
    folder = settings.data_dir
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        todo = "Choose another with FABRIC_DATA_DIR, or let this user write there."
        yield Finding("data directory", "error", f"{folder} can't be written", todo)
        return
    free = shutil.disk_usage(there).free
    said = f"{folder}, {free / _GIB:.1f} GiB free"
    if settings.socket and free < settings.disk_reserve_mb * 2**20:
        todo = "Make room: new jobs are refused until there is. FABRIC_DISK_RESERVE_MB says how much is kept back."
        yield Finding("data directory", "error", said, todo)
    elif free < _LITTLE_DISK:
        yield Finding("data directory", "warning", said, "Make room: without it new jobs are refused.")
    else:
        yield Finding("data directory", "ok", said)


def _secret(settings: Settings, given: Mapping[str, str]) -> Iterator[Finding]:
    from fabric.settings.secret import secrets_of

    file = settings.data_dir / "secret"
    if not settings.secret and not file.exists():
        yield Finding("secret", "ok", "none yet; the first process makes one in the data directory")
        return
    secrets_of(settings)
    origin = "from FABRIC_SECRET" if settings.secret else f"{file}, mode {stat.S_IMODE(file.stat().st_mode):o}"
    yield Finding("secret", "ok", origin)


def _api(settings: Settings, given: Mapping[str, str]) -> Iterator[Finding]:
    guarded(settings, lambda: any_keys(settings))
    yield Finding("api", "ok", f"may listen on {settings.host}, port {settings.port}")


def _store(settings: Settings, given: Mapping[str, str]) -> Iterator[Finding]:
    from redis import Redis
    from redis.exceptions import RedisError

    if _asleep(settings):
        yield Finding("store", "ok", "the embedded Valkey isn't running; `fabric up` starts it")
        yield from _on_disk(settings.data_dir / "valkey")
        return
    try:
        with Redis.from_url(settings.redis_url, socket_timeout=_ANSWER_S, socket_connect_timeout=_ANSWER_S) as redis:
            asked = time.time()
            seconds, micros = redis.time()
            skew = abs(seconds + micros / 1e6 - (asked + time.time()) / 2)
            info: dict[str, Any] = redis.info()
    except (RedisError, OSError) as error:
        todo = distrust(error, "FABRIC_REDIS_CA") or "Start it, or mend FABRIC_REDIS_URL."
        yield Finding("store", "error", f"Redis doesn't answer ({type(error).__name__})", todo)
        return
    yield from _server(info)
    if skew > _SKEW_S:
        said = f"its clock and this machine's are {skew:.1f} s apart"
        yield Finding("store", "warning", said, "Run an NTP client on both: deadlines come early or late.")


def _on_disk(folder: Path) -> Iterator[Finding]:
    from fabric.store import append_only
    from fabric.store.embedded import server_binary

    for path in append_only.files(folder):
        found = append_only.condition(path)
        if found.bad:
            lost = f"{found.size - found.end} bytes from {found.end} on"
            manifest = path.with_name("appendonly.aof.manifest")
            todo = (
                f"Restore a backup of {folder}; or copy the folder and give up these bytes and what they say of jobs: "
                f"`bash -c 'exec -a valkey-check-aof {server_binary()} --fix {manifest}'`."
            )
            yield Finding("store", "error", f"{path} is damaged, Valkey won't start with it: {lost}", todo)
        elif found.holes:
            said = f"{path.name} has a hole since its disk was full; `fabric up` takes it out, and nothing is lost"
            yield Finding("store", "warning", said)
        elif found.zeros:
            said = f"{path.name} ends in zeros, as a loss of power leaves it; `fabric up` cuts them off"
            yield Finding("store", "warning", said)


def _server(info: Mapping[str, Any]) -> Iterator[Finding]:
    name = "Valkey" if "valkey_version" in info else "Redis"
    text = str(info.get("valkey_version") or info["redis_version"])
    least = _VALKEY if name == "Valkey" else _REDIS
    if tuple(int(part) for part in text.split(".")[:2]) < least:
        todo = f"The fabric needs {name} {least[0]}.{least[1]} or later."
        yield Finding("store", "error", f"{name} {text} is too old", todo)
        return
    yield Finding("store", "ok", f"{name} {text}, {info['used_memory'] / 2**20:.0f} MiB used")
    if info.get("maxmemory") and info.get("maxmemory_policy") != "noeviction":
        todo = "Set `maxmemory-policy noeviction`: any other lets it drop jobs when its memory is full."
        yield Finding("store", "error", f"maxmemory-policy is {info['maxmemory_policy']}", todo)
    if not info.get("aof_enabled"):
        todo = "Set `appendonly yes`: without it a restart loses the jobs that came after the last snapshot."
        yield Finding("store", "warning", "it keeps no append-only file", todo)
    elif info.get("aof_last_write_status", "ok") != "ok":
        todo = "Make room on its disk, then have the file written anew at once: `BGREWRITEAOF` (docs/deployment.md)."
        yield Finding("store", "error", "it can't write its append-only file and refuses all jobs", todo)
    elif info.get("aof_last_bgrewrite_status", "ok") != "ok":
        todo = "Make room on its disk, for the data once more: until a rewrite succeeds the file only grows."
        yield Finding("store", "warning", "its append-only file couldn't be written anew", todo)


def _broker(settings: Settings, given: Mapping[str, str]) -> Iterator[Finding]:
    from fabric.broker import CA_SETTING, make_app

    if _asleep(settings) and settings.broker_url.startswith("redis+socket"):
        yield Finding("broker", "ok", "the embedded Valkey is the broker, too")
        return
    kind = settings.broker_url.partition("://")[0]
    try:
        with make_app(settings.broker_url).connection_for_read(connect_timeout=_ANSWER_S) as connection:
            connection.ensure_connection(max_retries=1, timeout=_ANSWER_S)
    except Exception as error:  # noqa: BLE001 - each transport has errors of its own
        todo = distrust(error, CA_SETTING) or "Start it, or mend FABRIC_BROKER_URL."
        yield Finding("broker", "error", f"{kind}: doesn't answer ({type(error).__name__})", todo)
        return
    yield Finding("broker", "ok", f"{kind}: answers")


def _ledger(settings: Settings, given: Mapping[str, str]) -> Iterator[Finding]:
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory

    from fabric.ledger import Ledger
    from fabric.ledger.upgrade import migrations

    kind = settings.database_url.partition(":")[0].partition("+")[0]
    if not has_tables(settings.database_url):
        yield Finding("ledger", "ok", f"{kind}: no tables yet; `fabric up` or `fabric migrate` makes them")
        return
    opened = Ledger(settings.database_url, connections=1, wait_s=_ANSWER_S)
    with contextlib.closing(opened) as ledger, ledger.reading() as connection:
        now = MigrationContext.configure(connection).get_current_revision()
        newest = ScriptDirectory.from_config(migrations(connection)).get_current_head()
    if now == newest:
        yield Finding("ledger", "ok", f"{kind}: up to date ({now})")
    else:
        todo = f"Run `fabric migrate` with this version of the fabric; it knows {newest}."
        yield Finding("ledger", "error", f"{kind}: its tables are those of {now}", todo)


def _places(settings: Settings, given: Mapping[str, str]) -> Iterator[Finding]:
    for deployment in settings.catalog.by_deployment.values():
        yield from checkup_places.look(deployment, given)


def _privacy(settings: Settings, given: Mapping[str, str]) -> Iterator[Finding]:
    from fabric.privacy import presidio

    rules = settings.catalog.privacy
    if rules.presidio is None:
        return
    models = ", ".join(rules.presidio.models.values())
    try:
        presidio.load(rules.presidio, presidio.kinds(rules))
    except ImportError:
        todo = "Install 'inference-fabric[presidio]' where the API and the recorder run: all texts count as hits."
        yield Finding("privacy", "error", "Presidio isn't installed", todo)
    except OSError:
        todo = "Install the spaCy pipeline, or give its folder in `privacy.presidio.models`; nothing is downloaded."
        yield Finding("privacy", "error", f"one of Presidio's models isn't there: {models}", todo)
    except ValueError as error:
        yield Finding("privacy", "error", str(error), "Name what it can find, or another model.")
    else:
        yield Finding("privacy", "ok", f"Presidio reads texts with {models}")


def _workers(settings: Settings, given: Mapping[str, str]) -> Iterator[Finding]:
    from fabric.store import Store, transitions

    if _asleep(settings):
        return
    with contextlib.closing(Store(settings.redis_url, timeout_s=_ANSWER_S)) as store:
        workers = store(transitions.room()).workers
    served = {name for worker in workers if not worker.draining for name in worker.capacity}
    for name, deployment in settings.catalog.by_deployment.items():
        if name not in served:
            todo = (
                f"Start one: `fabric worker {deployment.tier}`; one that loads shows within a minute. Jobs go to other "
                "places, or wait."
            )
            yield Finding("workers", "warning", f"none for {name} ({deployment.tier})", todo)
    if served:
        yield Finding("workers", "ok", f"{len(workers)} alive, for {len(served)} deployments")


def _asleep(settings: Settings) -> bool:
    """Whether the store is ``fabric up``'s own, and that isn't running."""
    return settings.socket is not None and not settings.socket.exists()


_Check = Callable[[Settings, Mapping[str, str]], Iterator[Finding]]
_CHECKS: dict[str, _Check] = {
    "configuration": _configuration,
    "data directory": _data_directory,
    "secret": _secret,
    "api": _api,
    "store": _store,
    "broker": _broker,
    "ledger": _ledger,
    "deployments": _places,
    "privacy": _privacy,
    "workers": _workers,
}
