"""``fabric costs``: what it cost, and what it would have cost elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fabric.cli.output import json_option, print_json, print_table
from fabric.cli.spending import by_option, filter_options, filters, output_options, show_table, usd, written

_AMOUNTS = ("cost_usd", "cloud_equivalent_usd", "savings_usd", "cost_per_1000_requests_usd")
_PER_MILLION = "cost_per_million_tokens_usd"


@click.group(invoke_without_command=True)
@by_option("tier,deployment")
@filter_options
@output_options
@click.option(
    "--focus", "as_focus", is_flag=True, help="Columns of FOCUS 1.2, a row a day; with --csv, --json, --parquet."
)
def costs(
    by: tuple[str, ...],
    as_csv: bool,
    as_json: bool,
    parquet: Path | None,
    as_focus: bool,
    **options: Any,
) -> None:
    """Show what it cost, and what was saved.

    By hour and day (UTC), in groups, with the month's forecast.

    `fabric costs report -o FILE` makes a page of it.
    """
    if click.get_current_context().invoked_subcommand is not None:
        return
    from fabric.client import Client

    asked = filters(options)
    with Client() as client:
        if as_focus:
            if not (as_csv or as_json or parquet):
                raise click.UsageError("--focus is for programs: give --csv, --json or --parquet, too.")
            from fabric.cli.focus import GROUPS, focus

            charges = [focus(row) for row in client.costs(group_by=GROUPS, **asked)]
            written(charges, as_json=as_json, as_csv=as_csv, parquet=parquet)
            return
        rows = list(client.costs(group_by=by, **asked))
        if written(rows, as_json=as_json, as_csv=as_csv, parquet=parquet):
            return
        summary = client.costs_summary(**asked)
    headers = (*(n.upper() for n in by), "REQUESTS", "USD", "IN THE CLOUD", "SAVED", "PER 1,000", "PER MILLION TOKENS")
    whole = dict.fromkeys(by) | summary["total"]
    show_table(headers, [_cells(row, by) for row in rows], _cells(whole, by), len(by))
    for line in notes(summary):
        click.echo(line)


def _cells(row: dict[str, Any], by: tuple[str, ...]) -> list[object]:
    amounts = (usd(row[name]) for name in (*_AMOUNTS, _PER_MILLION))
    return [*(row[name] for name in by), row["requests"], *amounts]


def notes(summary: dict[str, Any]) -> list[str]:
    """What a table of rows doesn't say, in sentences."""
    total, month, baseline = summary["total"], summary["month"], summary["baseline"]
    said = []
    for tier in summary["tiers"]:
        hours = tier.get("machines")
        if hours and hours["usd"]:
            said.append(
                f"{tier['tier']}: {hours['up_s'] / 3600:,.1f} machine hours for ${usd(hours['usd'])}, "
                f"${usd(hours['idle_usd'])} of it idle"
            )
    if baseline:
        said.append(
            f"baseline {baseline['model']}: ${usd(total['baseline_usd'])}, "
            f"saved ${usd(total['savings_vs_baseline_usd'])}"
        )
    if total["prediction_error"] is not None:
        said.append(f"costs were foreseen with a mean error of {total['prediction_error']:.0%}")
    forecast = usd(month["forecast_usd"])
    ahead = f"about ${forecast} by its end" if forecast else "too early to tell its end"
    said.append(f"{month['month']}: ${usd(month['spent_usd'])} so far, {ahead}")
    return said


@costs.command()
@json_option
def prices(as_json: bool) -> None:
    """Show what each deployment costs, in US dollars, and where its price is from."""
    from fabric.client import Client

    with Client() as client:
        tiers = client.status()["data"]
    found = [
        {"tier": tier["tier"], "deployment": d["name"], "model": d["model"], **d["price"]}
        for tier in tiers
        for d in tier["deployments"]
    ]
    if as_json:
        print_json(found)
        return
    amounts = ("input_per_million", "output_per_million", "cached_input_per_million", "machine_usd_per_hour")
    print_table(
        ("DEPLOYMENT", "TIER", "INPUT/M", "OUTPUT/M", "CACHED/M", "MACHINE/H", "BATCH", "FROM"),
        [
            (
                *(price["deployment"], price["tier"], *(usd(price.get(name)) for name in amounts)),
                *(f"-{price['batch_discount']:.0%}" if price["batch_discount"] else None, price["version"] or None),
            )
            for price in found
        ],
    )


@costs.command()
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path), help="The HTML file.")
@filter_options
def report(output: Path, **options: Any) -> None:
    """Write a page with charts: one file that needs nothing else, for a browser or an e-mail."""
    from fabric.cli.cost_report import Figures, page
    from fabric.client import Client

    asked = filters(options)
    with Client() as client:
        figures = Figures(
            summary=client.costs_summary(**asked),
            days=list(client.costs(group_by=("day", "tier"), **asked)),
            models=list(client.costs(group_by=("model", "deployment"), **asked)),
            tenants=list(client.costs(group_by=("tenant",), **asked)),
            tags=list(client.costs(group_by=("tag",), **asked)),
        )
    output.write_text(page(figures), "utf-8")
    click.echo(f"{output} written", err=True)
