"""``fabric security``: users of Redis and RabbitMQ with the least rights, one a role."""

from __future__ import annotations

import os
from pathlib import Path

import click

from fabric.cli.output import json_option, print_json
from fabric.contracts.errors import ConfigError


@click.group()
def security() -> None:
    """Give each role a user of its own in Redis and RabbitMQ."""


def _url(schemes: tuple[str, ...]) -> click.types.FuncParamType:
    from urllib.parse import urlsplit

    def url(value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in schemes or "@" in parts.netloc:
            raise ValueError
        return value

    url.__name__ = f"URL without a user ({', '.join(f'{scheme}://' for scheme in schemes)})"
    return click.types.FuncParamType(url)


@security.command()
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder for the files.")
@click.option(
    "--redis",
    "redis_url",
    type=_url(("redis", "rediss", "unix")),
    default="redis://127.0.0.1:6379/0",
    show_default=True,
    help="Where the job store is.",
)
@click.option(
    "--rabbitmq",
    "rabbitmq_url",
    type=_url(("amqp", "amqps")),
    help="Where RabbitMQ is; its path is the virtual host. [default: Redis carries messages, too]",
)
@json_option
def init(out: Path, redis_url: str, rabbitmq_url: str | None, as_json: bool) -> None:
    """Write an access list for Redis, definitions for RabbitMQ, and an environment file for each role.

    What is there already isn't overwritten: to change passwords, write another folder, load it, and start the
    processes with its files.
    """
    from fabric.security import Access, files

    written = files(Access(redis_url, rabbitmq_url or ""))
    _write(out, written)
    if as_json:
        print_json({"out": str(out), "files": sorted(written)})
        return
    for name in sorted(written):
        click.echo(out / name)


def _write(out: Path, texts: dict[str, str]) -> None:
    """For the owner alone.

    Raises:
        ConfigError: one of them is there, or the folder can't be written; then nothing is.
    """
    try:
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
        if there := sorted(name for name in texts if os.path.lexists(out / name)):
            raise ConfigError(
                f"{out / there[0]} is there already, and may be in use: nothing was written. Choose another folder, or "
                "move that one away."
            )
        for name, text in texts.items():
            descriptor = os.open(out / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(text)
    except OSError as error:
        raise ConfigError(f"Can't write to {out} ({error.strerror}): mend that, or choose another folder.") from None
