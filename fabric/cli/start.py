"""What every process of the fabric does first: settings from all sources, one format of log lines."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from fabric.cli import open_files
from fabric.cli.journal import DATE_FORMAT, FORMAT
from fabric.settings import Settings, load

F = TypeVar("F", bound=Callable[..., Any])

config_option = click.option(
    "--config", type=click.Path(dir_okay=False, path_type=Path), help="Configuration file. [default: ./fabric.yaml]"
)
data_dir_option = click.option(
    "--data-dir", type=click.Path(file_okay=False, path_type=Path), help="Where everything is kept. [default: .fabric]"
)
host_option = click.option("--host", help="Address to listen on. [default: 127.0.0.1]")
port_option = click.option("--port", type=click.IntRange(0, 65535), help="Port; 0 takes a free one. [default: 8080]")


def environ(**options: object) -> dict[str, str]:
    """The environment, with the options that were given on the command line over it."""
    given = {f"FABRIC_{name.upper()}": str(value) for name, value in options.items() if value is not None}
    return {**os.environ, **given}


def begin(config: Path | None, **options: object) -> Settings:
    """
    Raises:
        ConfigError: a setting is wrong.
    """
    settings = load(config, environ(**options))
    logging.basicConfig(level=settings.log_level, format=FORMAT, datefmt=DATE_FORMAT, stream=sys.stderr)
    open_files.raise_limit()
    logging.getLogger("alembic").setLevel(logging.WARNING)  # it would say what it imports
    return settings
