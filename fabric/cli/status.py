"""``fabric status``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from fabric.cli.output import json_option, print_json, print_table


@click.command()
@json_option
def status(as_json: bool) -> None:
    """Show tiers, workers, slots and what waits; and the processes, when the fabric runs here."""
    from fabric.client import Client

    with Client() as client:
        shown = client.status()
    processes = _processes()
    if as_json:
        print_json({**shown, **({"processes": processes} if processes else {})})
        return
    _print_tiers(shown)
    if processes:
        click.echo()
        print_table(("PROCESS", "PID", "RESTARTS"), [(n, p["pid"], p["restarts"]) for n, p in processes.items()])


def _processes() -> dict[str, Any] | None:
    """What ``fabric up`` runs on this machine's data directory, if it does."""
    from fabric.cli.data_dir import read_run

    run = read_run(Path(os.environ.get("FABRIC_DATA_DIR") or ".fabric"))
    return dict(run["processes"]) if run else None
