"""``fabric security``: users of Redis and RabbitMQ with the least rights, one a role."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from fabric.cli import private_file
from fabric.cli.output import json_option, print_json
from fabric.cli.start import begin, config_option
from fabric.contracts.errors import ConfigError
from fabric.contracts.terms import SCHEDULER, TIERS, zone_of

if TYPE_CHECKING:
    from fabric.contracts.secret import Secrets


@click.group()
def security() -> None:
    """Give each role a user of its own in Redis and RabbitMQ, each worker the keys of its zones, and the scheduler
    those that it signs with."""


class _Place(click.ParamType[str]):
    """A URL without a user. What is wrong isn't shown: it may hold a password."""

    name = "URL"

    def __init__(self, *schemes: str) -> None:
        self._schemes = schemes

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        parts = urlsplit(str(value))
        if parts.scheme not in self._schemes or "@" in parts.netloc:
            begin = " or ".join(f"{scheme}://" for scheme in self._schemes)
            self.fail(f"it begins with {begin}, and names no user: each role gets its own.", param, ctx)
        return str(value)


@security.command()
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder for the files.")
@click.option(
    "--redis",
    "redis_url",
    type=_Place("redis", "rediss", "unix"),
    default="redis://127.0.0.1:6379/0",
    show_default=True,
    help="Where the job store is.",
)
@click.option(
    "--rabbitmq",
    "rabbitmq_url",
    type=_Place("amqp", "amqps"),
    help="Where RabbitMQ is; its path is the virtual host. [default: Redis carries messages, too]",
)
@click.option("--tls", is_flag=True, help="Make an authority, too, and certificates of the servers for these URLs.")
@click.option(
    "--containers",
    is_flag=True,
    help="The servers run under users of their own, with single files mounted: those may be read by them. The folder "
    "itself is its owner's alone.",
)
@config_option
@json_option
def init(
    out: Path,
    redis_url: str,
    rabbitmq_url: str | None,
    tls: bool,
    containers: bool,
    config: Path | None,
    as_json: bool,
) -> None:
    """Write an access list for Redis, definitions for RabbitMQ, and an environment file for each role.

    The secret is the one that there is, else a new one; workers get the keys of their tier's trust zones.

    What is there already isn't overwritten: to change passwords, write another folder, load it, and start the
    processes with its files.
    """
    from fabric.security import Access, certificates, files, is_a_servers
    from fabric.settings.secret import kept_secret

    settings = begin(config)
    zones = {tier: {d.zone for d in settings.catalog.of_tier(tier)} or {zone_of(tier)} for tier in TIERS}
    secret = kept_secret(settings) or secrets.token_hex(32)
    written = files(Access(redis_url, rabbitmq_url or ""), secret, zones)
    if tls:
        written |= certificates(_hosts(redis_url, rabbitmq_url))
    _write(out, written, shared={name for name in written if containers and is_a_servers(name)})
    if as_json:
        print_json({"out": str(out), "files": sorted(written)})
        return
    for name in sorted(written):
        click.echo(out / name)


@security.command("zone-keys")
@config_option
@click.argument("zones", nargs=-1)
@click.option(
    "--into",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write a file for each zone and the scheduler, FOLDER/ZONE/zone-keys, and make the secret if there is none.",
)
def zone_keys(config: Path | None, zones: tuple[str, ...], into: Path | None) -> None:
    """Print FABRIC_ZONE_KEYS for workers of these trust zones [default: all zones], or for the scheduler: `scheduler`.

    With it workers open the texts of jobs that may run there, and nothing else; the scheduler signs its messages with
    it, and opens nothing. Run it where the API has its secret.
    """
    settings = begin(config)
    from fabric.contracts.secret import Secrets
    from fabric.settings.secret import kept_secret, secrets_of

    there = {d.zone for model in settings.catalog.models for d in model.deployments}
    if SCHEDULER in zones and len(set(zones)) > 1:
        raise ConfigError(f"`{SCHEDULER}` is for the scheduler alone: print its keys and those of workers apart.")
    if unknown := sorted(set(zones) - there - {SCHEDULER}):
        raise ConfigError(f"No deployment is in the trust zone {unknown[0]!r}; there is {', '.join(sorted(there))}.")
    wanted = sorted(zones or there)
    if into is not None:
        secrets_ = secrets_of(settings)
        for name in wanted if zones else [*wanted, SCHEDULER]:
            _replace(into / name / "zone-keys", _keys_of(secrets_, [name]) + "\n")
        return
    secret = kept_secret(settings)
    if secret is None:
        raise ConfigError(
            f"There is no secret to derive keys from: FABRIC_SECRET isn't set, and {settings.data_dir} holds none. "
            "Run this with the API's environment."
        )
    click.echo(_keys_of(Secrets.parse(secret), wanted))


def _keys_of(secrets_: Secrets, names: list[str]) -> str:
    """Of workers of these zones, or of the scheduler."""
    from fabric.contracts.signed import Signer
    from fabric.contracts.zones import WorkerKeys

    return Signer.of(secrets_).dump() if names == [SCHEDULER] else WorkerKeys.of(secrets_, names).dump()


def _replace(path: Path, text: str) -> None:
    """Raises ``ConfigError``."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        private_file.replace(path, text.encode())
    except OSError as error:
        raise ConfigError(f"Can't write {path} ({error.strerror}).") from None


def _hosts(redis_url: str, rabbitmq_url: str | None) -> dict[str, str]:
    """Server -> what its certificate is for. Raises ``ConfigError``."""
    hosts = {}
    for server, url in (("redis", redis_url), ("rabbitmq", rabbitmq_url)):
        if url is None:
            continue
        parts = urlsplit(url)
        if parts.scheme not in ("rediss", "amqps") or not parts.hostname:
            raise ConfigError(f"--tls needs a URL that speaks TLS and names a host, for {server}: rediss://, amqps://.")
        hosts[server] = parts.hostname
    return hosts


def _write(out: Path, texts: dict[str, str], shared: set[str]) -> None:
    """For the owner alone, but for those that are ``shared``, which others may read who get to them.

    Raises:
        ConfigError: one of them is there, or the folder can't be written; then nothing is.
    """
    try:
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
        if shared and stat.S_IMODE(out.stat().st_mode) & 0o077:
            raise ConfigError(f"Others can enter {out}, and would find files there that they can read: chmod 700 {out}")
        if there := sorted(name for name in texts if os.path.lexists(out / name)):
            raise ConfigError(
                f"{out / there[0]} is there already, and may be in use: nothing was written. Choose another folder, or "
                "move that one away."
            )
        for name, text in texts.items():
            descriptor = os.open(out / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            if name in shared:
                os.fchmod(descriptor, 0o644)
            with os.fdopen(descriptor, "w") as file:
                file.write(text)
    except OSError as error:
        raise ConfigError(f"Can't write to {out} ({error.strerror}): mend that, or choose another folder.") from None
