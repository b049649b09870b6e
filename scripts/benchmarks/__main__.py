"""``scripts/bench``: one command a benchmark."""

from __future__ import annotations

import signal
import sys
from importlib import import_module

import click

from benchmarks.processes import Void

_BENCHMARKS = (
    "latency",
    "saturation",
    "batch",
    "inflight",
    "scale",
    "efficiency",
    "mixed",
    "decision",
    "dispatch",
    "plan",
    "prediction",
    "sealing",
    "tracing",
)


class _Benchmarks(click.Group):
    """A benchmark's module is imported when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_BENCHMARKS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _BENCHMARKS:
            return None
        command: click.Command = import_module(f"benchmarks.{cmd_name}").command
        return command


@click.group(cls=_Benchmarks, context_settings={"help_option_names": ["-h", "--help"]})
def bench() -> None:
    """Measures the fabric, and in the same run the direct way without it."""


def main() -> None:
    # Whoever stops a benchmark also stops what it has started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        bench(prog_name="bench")
    except Void as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
