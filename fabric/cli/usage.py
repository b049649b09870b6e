"""``fabric usage``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fabric.cli.spending import by_option, filter_options, filters, output_options, show_table, usd, written

_NUMBERS = ("requests", "failed_requests", "input_tokens", "cached_input_tokens", "output_tokens", "reasoning_tokens")


@click.command()
@by_option("model,tier,deployment")
@filter_options
@output_options
def usage(by: tuple[str, ...], as_csv: bool, as_json: bool, parquet: Path | None, **options: Any) -> None:
    """Show requests and tokens, by hour and day (UTC), in groups.

    Cached tokens are a part of the input, reasoning of the output. By tag a request counts for each of its tags.
    """
    from fabric.client import Client

    with Client() as client:
        rows = list(client.usage(group_by=by, **filters(options)))
        if written(rows, as_json=as_json, as_csv=as_csv, parquet=parquet):
            return
        (whole,) = client.usage(**filters(options))
    headers = (*(name.upper() for name in by), "REQUESTS", "FAILED", "INPUT", "CACHED", "OUTPUT", "REASONING", "USD")
    show_table(headers, [_cells(row, by) for row in rows], _cells(dict.fromkeys(by) | whole, by), len(by))


def _cells(row: dict[str, Any], by: tuple[str, ...]) -> list[object]:
    return [*(row[name] for name in by), *(row[name] for name in _NUMBERS), usd(row["cost_usd"])]
