"""What ``fabric usage`` and ``fabric costs`` have in common: options, and rows as a table, CSV, Parquet or JSON."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from fabric.cli.output import json_option, print_json
from fabric.contracts.catalog import TIERS
from fabric.contracts.errors import ConfigError
from fabric.contracts.job import ENDPOINTS

F = TypeVar("F", bound=Callable[..., Any])
Row = Mapping[str, Any]

GROUPS = ("tenant", "key", "tag", "model", "deployment", "tier", "endpoint", "day", "hour")
_FILTERS = ("since", "until", "tenant", "key", "tag", "model", "deployment", "tier", "endpoint")


class _Groups(click.ParamType[tuple[str, ...]]):
    name = "names"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        names = tuple(dict.fromkeys(name.strip() for name in str(value).split(",") if name.strip()))
        for name in names:
            if name not in GROUPS:
                self.fail(f"{name!r} is none of {', '.join(GROUPS)}.", param, ctx)
        return names


def filter_options(command: F) -> F:
    """Whose, where and when."""
    for option in reversed(
        (
            click.option(
                "--since", default="30d", show_default=True, help="A date, a time, or how long ago: 30d, 12h."
            ),
            click.option("--until", help="As --since; that hour itself is left out. [default: now]"),
            click.option("--tenant", help="Only this tenant's."),
            click.option("--key", help="Only this key's: its id."),
            click.option("--tag", help="Only requests with this tag."),
            click.option("--model", help="Only this model's: its logical name."),
            click.option("--deployment", help="Only of this deployment."),
            click.option("--tier", type=click.Choice(TIERS), help="Only of this tier."),
            click.option("--endpoint", type=click.Choice(ENDPOINTS), help="Only of this endpoint."),
        )
    ):
        command = option(command)
    return command


def output_options(command: F) -> F:
    for option in reversed(
        (
            click.option("--csv", "as_csv", is_flag=True, help="Print CSV."),
            click.option(
                "--parquet",
                type=click.Path(dir_okay=False, path_type=Path),
                help="Write this Parquet file (needs the extra `parquet`).",
            ),
            json_option,
        )
    ):
        command = option(command)
    return command


def by_option(default: str) -> Callable[[F], F]:
    return click.option(
        "--by", default=default, show_default=True, type=_Groups(), help=f"Groups, with commas: {', '.join(GROUPS)}."
    )


def filters(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: options[name] for name in _FILTERS}


def written(rows: Sequence[Row], *, as_json: bool, as_csv: bool, parquet: Path | None) -> bool:
    """Writes rows for programs, if that was asked for."""
    if as_csv + as_json + (parquet is not None) > 1:
        raise click.UsageError("Give one of --csv, --json and --parquet.")
    if parquet is not None:
        _write_parquet(rows, parquet)
        click.echo(f"{len(rows)} rows in {parquet}", err=True)
    elif as_csv:
        print_csv(rows)
    elif as_json:
        print_json(list(rows))
    return as_csv or as_json or parquet is not None


def print_csv(rows: Sequence[Row]) -> None:
    """With a header, unless there is nothing."""
    if rows:
        writer = csv.DictWriter(sys.stdout, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)


def _cell(value: Any) -> Any:
    # Spreadsheets take such texts for formulas.
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return "'" + value
    return f"{value:.12g}" if isinstance(value, float) else value


def _write_parquet(rows: Sequence[Row], path: Path) -> None:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ConfigError("Parquet needs pyarrow: install `inference-fabric[parquet]`.") from None
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([dict(row) for row in rows]), path)


def show_table(headers: Sequence[str], rows: Sequence[Sequence[object]], total: Sequence[object], names: int) -> None:
    """For people: ``names`` columns of text, then numbers, and the sum below."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_footer=True, pad_edge=False)
    for place, header in enumerate(headers):
        footer = _shown(total[place]) if place >= names else "" if place else "total"
        justify: Any = "left" if place < names else "right"
        table.add_column(header, footer, justify=justify, no_wrap=place >= names, overflow="fold")
    for row in rows:
        table.add_row(*map(_shown, row))
    # As wide as it is where nobody looks: a pipe has no width.
    console = Console() if sys.stdout.isatty() else Console(width=240)
    console.print(table)


def _shown(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else str(value)


def usd(value: float | None) -> str | None:
    """Small amounts with as many digits as they need."""
    if value is None:
        return None
    if value == 0:
        return "0"
    return f"{value:,.2f}" if abs(value) >= 1 else f"{value:.6f}".rstrip("0") if abs(value) >= 1e-6 else f"{value:.1e}"
