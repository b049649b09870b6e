"""``scripts/chaos``: breaks a fabric under load for some minutes, and says which laws held."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, get_args

import click

from storm import laws, plan, report
from storm.run import run


@click.command()
@click.option("--minutes", type=click.FloatRange(0.1, 24 * 60), default=10.0, show_default=True)
@click.option("--seed", type=int, help="Of the plan; printed, and the same plan again when given. [default: any]")
@click.option("--transport", type=click.Choice(get_args(plan.Transport)), default="valkey", show_default=True)
@click.option("--only", multiple=True, type=click.Choice(list(plan.KINDS)), help="These kinds of faults and no others.")
@click.option("--without", multiple=True, type=click.Choice(list(plan.KINDS)), help="Not these kinds of faults.")
@click.option("--show", is_flag=True, help="Print the plan and do nothing.")
@click.option("--json", "as_json", is_flag=True, help="End with one line of JSON.")
def main(
    minutes: float,
    seed: int | None,
    transport: plan.Transport,
    only: tuple[str, ...],
    without: tuple[str, ...],
    show: bool,
    as_json: bool,
) -> None:
    """Break a whole fabric under load, and check that nothing is lost, nothing is done twice, nothing leaks."""
    seed = random.SystemRandom().randrange(1_000_000) if seed is None else seed
    faults = plan.make(seed, minutes * 60, transport, without=(*without, *_impossible()), only=only)
    click.echo(f"seed {seed}, transport {transport}, {len(faults)} faults in {minutes:g} minutes")
    if show:
        click.echo("\n".join(map(str, faults)))
        return
    # A unix socket's path is limited: not below a deep folder.
    folder = Path(tempfile.mkdtemp(prefix="storm-", dir="/tmp"))
    began = time.monotonic()

    def say(what: str) -> None:
        click.echo(f"[{time.monotonic() - began:6.1f}] {what}")

    result = asyncio.run(run(folder, transport, faults, minutes * 60, say))
    broken = laws.broken(result.evidence)
    values: dict[str, Any] = {"seed": seed, "transport": transport, **report.figures(result, broken)}
    click.echo(report.text(values))
    if as_json:
        click.echo(json.dumps(values))
    if broken:
        click.echo(f"the logs are in {folder}")
        sys.exit(1)
    shutil.rmtree(folder, ignore_errors=True)


def _impossible() -> list[str]:
    """Kinds of faults that this machine can't have; said, so that nobody takes them for tried."""
    reasons = plan.impossible()
    for kind, reason in reasons.items():
        click.echo(f"not covered: {kind} ({reason})")
    return list(reasons)


if __name__ == "__main__":
    main()
