"""``fabric jobs``."""

from __future__ import annotations

from typing import Any

import click

from fabric.cli.output import json_option, print_json, print_table


@click.group()
def jobs() -> None:
    """List, show, cancel and delete jobs."""


@jobs.command("ls")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="Most jobs to list.")
@json_option
def list_jobs(limit: int, as_json: bool) -> None:
    """List jobs, newest first."""
    from fabric.client import Client

    with Client() as client:
        found = list(client.jobs(limit=limit))
    if as_json:
        print_json(found)
        return
    print_table(
        ("ID", "STATE", "MODEL", "WHERE", "ATTEMPTS", "WAITS FOR"),
        [
            (job["id"], job["state"], job.get("model"), _place(job), len(job.get("attempts") or ()), _waiting(job))
            for job in found
        ],
    )


@jobs.command()
@click.argument("job_id")
@json_option
def show(job_id: str, as_json: bool) -> None:
    """Show one job: its state, attempts, decision, usage and result."""
    from fabric.client import Client

    with Client() as client:
        job = client.job(job_id).refresh()
    if as_json:
        print_json(job)
        return
    plain = {name: value for name, value in job.items() if not isinstance(value, dict | list)}
    width = max(map(len, plain))
    for name, value in plain.items():
        click.echo(f"{name:<{width}}  {'-' if value is None else value}")
    for attempt in job.get("attempts") or ():
        reason = (attempt.get("error") or {}).get("message", "")
        where = f"{attempt.get('deployment')} ({attempt.get('tier')})"
        click.echo(f"attempt {attempt.get('number')}: {attempt.get('outcome')} at {where} {reason}".rstrip())
        for out in (attempt.get("decision") or {}).get("eliminated") or ():
            click.echo(f"  not {out['deployment']}: {out['reason']} ({out['detail']})")
    for move in job.get("moves") or ():
        click.echo(f"moved from {move['from']} to {move['to']} for attempt {move['attempt']}: {_why(move)}")
    for name in ("usage", "decision", "result", "error"):
        if job.get(name):
            click.echo(f"{name}:")
            print_json(job[name])


@jobs.command()
@click.argument("job_ids", nargs=-1, required=True)
@json_option
def cancel(job_ids: tuple[str, ...], as_json: bool) -> None:
    """Stop jobs, waiting or running. Those that have ended stay as they are."""
    from fabric.client import Client

    with Client() as client:
        cancelled = [client.job(job_id).cancel() for job_id in job_ids]
    if as_json:
        print_json(cancelled)
        return
    for job in cancelled:
        click.echo(f"{job['id']} {job['state']}")


@jobs.command()
@click.argument("job_ids", nargs=-1, required=True)
@json_option
def delete(job_ids: tuple[str, ...], as_json: bool) -> None:
    """Delete what jobs that have ended said. What they took stays in the accounts."""
    from fabric.client import Client

    with Client() as client:
        for job_id in job_ids:
            client.job(job_id).delete()
            if not as_json:
                click.echo(f"{job_id} deleted")
    if as_json:
        print_json([{"id": job_id, "deleted": True} for job_id in job_ids])


def _why(move: dict[str, Any]) -> str:
    return move.get("reason") or "there was room"


def _place(job: dict[str, Any]) -> str | None:
    attempts = job.get("attempts") or ()
    return attempts[-1].get("deployment") if attempts else None


def _waiting(job: dict[str, Any]) -> str | None:
    if job.get("queue_position") is None:
        return None
    eta = job.get("eta_s")
    return f"{job['queue_position']} before it" + (f", about {eta:.0f} s" if eta is not None else "")
