"""``fabric audit``: whether the trail is whole, and the trail itself."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fabric.cli.output import json_option, print_json
from fabric.cli.start import config_option, data_dir_option

if TYPE_CHECKING:
    from fabric.ledger.audit import Head


@click.group()
def audit() -> None:
    """Check and export the audit trail: who did what to keys, labels, parked jobs and policies."""


@audit.command()
@click.option("--head", "heads", multiple=True, help="A head that an earlier run printed; may be given again.")
@config_option
@data_dir_option
@json_option
def verify(heads: tuple[str, ...], config: Path | None, data_dir: Path | None, as_json: bool) -> int:
    """Find changed, missing, reordered and added rows, and an end that was cut off.

    The end is checked against the head that the store keeps, and against those given. Ends with status 1 when
    something is wrong. Keep the head that it prints where nobody who can write to the database can.
    """
    from fabric.cli.on_ledger import on_ledger
    from fabric.contracts.errors import Unavailable
    from fabric.ledger import audit as trail

    known = [_head(text) for text in heads]
    with on_ledger(config, data_dir) as here:
        try:
            kept = here.kept_head()
            against = str(kept) if kept else None
            known += [kept] if kept else []
        except Unavailable:
            against = None
        verdict = here.ledger.read(trail.verify, here.secrets, known)
        if verdict.whole:
            here.keep_head()
    if as_json:
        print_json(
            {
                "whole": verdict.whole,
                "rows": verdict.rows,
                "head": str(verdict.head),
                "head_in_store": against,
                "problems_found": verdict.found,
                "problems": verdict.problems,
            }
        )
        return 0 if verdict.whole else 1
    for problem in verdict.problems:
        click.echo(f"error: {problem}", err=True)
    if verdict.found > len(verdict.problems):
        click.echo(f"error: … and {verdict.found - len(verdict.problems)} more", err=True)
    if against is None and not heads:
        click.echo("warning: no head to check the end against: the store keeps none, or is away", err=True)
    state = "whole" if verdict.whole else "NOT whole"
    click.echo(f"{verdict.rows} rows, {state}; head {verdict.head}")
    return 0 if verdict.whole else 1


def _head(text: str) -> Head:
    from fabric.ledger.audit import Head

    try:
        return Head.parse(text)
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is no head; `fabric audit verify` prints one.", param_hint="--head"
        ) from None


@audit.command()
@click.option("--after", type=click.IntRange(0), default=0, help="Only rows behind this number. [default: all]")
@click.option(
    "--output", "-o", type=click.Path(dir_okay=False, path_type=Path), help="File. [default: standard output]"
)
@config_option
@data_dir_option
def export(after: int, output: Path | None, config: Path | None, data_dir: Path | None) -> None:
    """Write the trail as JSON, a row a line. That it was exported is a row itself, written afterwards."""
    import orjson

    from fabric.cli.on_ledger import on_ledger
    from fabric.ledger import audit as trail

    with on_ledger(config, data_dir) as here:
        count = 0
        file = output.open("wb") if output else sys.stdout.buffer
        try:
            with here.ledger.reading() as connection:
                for row in trail.rows(connection, after=after):
                    file.write(orjson.dumps(row.object()) + b"\n")
                    count += 1
            file.flush()
        finally:
            if output:
                file.close()
        detail = {"after": after, "rows": count}
        event = trail.Event("audit.exported", here.actor, time.time_ns() // 1_000_000, detail=detail)
        here.ledger.write(trail.append, here.secrets, [event])
        here.keep_head()
    click.echo(f"{count} rows", err=True)
