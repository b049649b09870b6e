"""``fabric status``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fabric.cli.output import json_option, local_time, print_json, print_table
from fabric.contracts.errors import PermissionDenied, Unavailable

if TYPE_CHECKING:
    from fabric.client import Client


@click.command()
@click.option(
    "--url", "only_url", is_flag=True, help="Print where the fabric of the data directory listens, once it is ready."
)
@json_option
def status(only_url: bool, as_json: bool) -> None:
    """Show tiers, workers, slots and what waits; and the processes, when the fabric runs here."""
    run = _run()
    if only_url:
        click.echo(_ready_url(run))
        return
    from fabric.client import Client

    with Client() as client:
        shown = client.status()
        workers = _workers(client)
    processes = run["processes"] if run else {}
    if as_json:
        print_json({**shown, "workers": workers, **({"processes": processes} if processes else {})})
        return
    _print_tiers(shown["data"])
    _print_errors(shown["data"])
    if workers:
        click.echo()
        _print_workers(workers)
    _print_config(shown.get("config"))
    if processes:
        click.echo()
        print_table(("PROCESS", "PID", "RESTARTS"), [(n, p["pid"], p["restarts"]) for n, p in processes.items()])


def _workers(client: Client) -> list[dict[str, Any]] | None:
    """Those that live; ``None`` where the key may not see them."""
    try:
        return client.workers()
    except PermissionDenied:
        return None


def _print_workers(workers: Sequence[dict[str, Any]]) -> None:
    print_table(
        ("WORKER", "TIER", "HOST", "PID", "SINCE", "SLOTS", "BUSY", ""),
        [
            (
                *(w["id"], w["tier"], w["host"], w["pid"], local_time(w["started_at"]), w["slots"], w["busy"]),
                "draining" if w["draining"] else None,
            )
            for w in workers
        ],
    )


def _print_tiers(tiers: Sequence[dict[str, Any]]) -> None:
    print_table(
        ("TIER", "DEPLOYMENT", "MODEL", "ENGINE", "WORKERS", "STATE", "SLOTS", "BUSY", "BREAKER"),
        [
            (
                *(tier["tier"], d["name"], d["model"], d["engine"], d["workers"]),
                *(_states(d), d["slots"], d["busy"], _breaker(d)),
            )
            for tier in tiers
            for d in tier["deployments"]
        ],
    )


def _print_errors(tiers: Sequence[dict[str, Any]]) -> None:
    rows = [
        (tier["tier"], kind.replace("_", " "), *(f"{error[share]:.0%}" for share in ("p50", "p90")))
        for tier in tiers
        for kind, error in tier.get("prediction_error", {}).items()
        if error["p50"] is not None
    ]
    if rows:
        click.echo()
        print_table(("TIER", "PREDICTED", "WRONG BY (p50)", "(p90)"), rows)


def _breaker(deployment: dict[str, Any]) -> str:
    breaker = deployment.get("breaker") or {"state": "closed"}
    if breaker["state"] != "open":
        return str(breaker["state"]).replace("_", " ")
    return f"open until {local_time(breaker['until_ms'] / 1000)} ({breaker['reason']})"


def _states(deployment: dict[str, Any]) -> str | None:
    """``loaded``, or with numbers where the workers differ: ``2 loaded, 1 away``."""
    states = deployment["states"]
    if len(states) <= 1:
        return next(iter(states), None)
    return ", ".join(f"{count} {state}" for state, count in sorted(states.items()))


def _print_config(config: dict[str, Any] | None) -> None:
    if config is None:
        return
    click.echo(f"\nrules {config['policy_hash']}")
    if config["problem"]:
        click.echo(f"the configuration file has changed and doesn't count: {config['problem']}")


def _run() -> dict[str, Any] | None:
    """What ``fabric up`` runs on this machine's data directory, if it does."""
    from fabric.cli.data_dir import read_run

    return read_run(Path(os.environ.get("FABRIC_DATA_DIR") or ".fabric"))


def _ready_url(run: dict[str, Any] | None) -> str:
    """
    Raises:
        Unavailable: nothing runs there, or it isn't ready yet.
    """
    import httpx

    url = str(run["url"]) if run else ""
    try:
        ready = bool(url) and httpx.get(f"{url}/health/ready", timeout=2, trust_env=False).is_success
    except httpx.TransportError:
        ready = False
    if not ready:
        raise Unavailable("No fabric is ready on this data directory. FABRIC_DATA_DIR says which one is meant.")
    return url
