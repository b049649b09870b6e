"""What all benchmarks' commands have in common."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from benchmarks.report import Report


def benchmark(measure: Callable[..., Report]) -> click.Command:
    """A command that shows the report which ``measure`` returns. Its options are declared below this decorator."""

    @click.command(help=measure.__doc__)
    @click.option("--json", "as_json", is_flag=True, help="End with one line of JSON.")
    @wraps(measure)
    def run(*, as_json: bool, **options: Any) -> None:
        report = measure(**options)
        click.echo(report)
        if as_json:
            click.echo(report.json())

    return run
