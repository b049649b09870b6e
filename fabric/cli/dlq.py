"""``fabric dlq``: parked jobs, and messages that nobody can read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fabric.cli.output import json_option, local_time, print_json, print_table
from fabric.contracts.catalog import TIERS
from fabric.contracts.errors import FabricError

if TYPE_CHECKING:
    from fabric.client import Client

F = TypeVar("F", bound=Callable[..., Any])
_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


class _Age(click.ParamType[int]):
    name = "age"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        found = re.fullmatch(r"([0-9]{1,9})([smhd]?)", str(value))
        if not found:
            self.fail(f"{value!r} is no age; such are 45s, 30m, 12h and 7d.", param, ctx)
        return int(found[1]) * _UNITS[found[2] or "s"]


def _filters(command: F) -> F:
    for option in (
        click.option("--newer-than", "max_age_s", type=_Age(), help="Parked so long ago at most: 45s, 30m, 12h, 7d."),
        click.option("--older-than", "min_age_s", type=_Age(), help="Parked so long ago, or longer."),
        click.option("--model", help="Of this logical model."),
        click.option("--tier", type=click.Choice(TIERS), help="Whose last attempt was on this tier."),
        click.option("--reason", help="With this code among the reasons, such as engine_error or budget."),
    ):
        command = option(command)
    return command


@click.group()
def dlq() -> None:
    """List, show, replay and drop parked jobs."""


@dlq.command("ls")
@_filters
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="Most letters to list.")
@json_option
def list_letters(limit: int, as_json: bool, **filters: Any) -> None:
    """List parked jobs, newest first, and then messages that nobody can read."""
    from fabric.client import Client

    with Client() as client:
        letters = list(client.dead_letters(limit=limit, **filters))
        letters += _messages(client, limit, filters)
    if as_json:
        print_json(letters)
        return
    print_table(
        ("JOB", "QUEUE", "MODEL", "ATTEMPTS", "PARKED", "LAST REASON"),
        [
            (
                letter["job_id"],
                letter["queue"],
                letter.get("model"),
                len(letter["attempts"]) if letter["job_id"] else None,
                local_time(letter["parked_at"]),
                _reason(letter),
            )
            for letter in letters
        ],
    )


def _messages(client: Client, limit: int, filters: dict[str, Any]) -> list[dict[str, Any]]:
    try:
        return list(client.dead_letters(limit=limit, kind="messages", **filters))
    except FabricError as error:
        if error.error_code == "insufficient_scope":
            return []  # they belong to no tenant
        raise


def _reason(letter: dict[str, Any]) -> str | None:
    """What it was parked for: the last that isn't about another place."""
    own = [reason for reason in letter["reasons"] if reason["fault"] != "policy"] or letter["reasons"]
    if not own:
        return None
    last = own[-1]
    return str(last["code"] if letter["job_id"] else last["message"])


@dlq.command()
@click.argument("job_id")
@json_option
def show(job_id: str, as_json: bool) -> None:
    """Show one parked job: its reasons, oldest first, and every attempt."""
    from fabric.client import Client

    with Client() as client:
        letter = client.dead_letter(job_id)
    if as_json:
        print_json(letter)
        return
    for name in ("job_id", "queue", "model", "endpoint", "privacy"):
        click.echo(f"{name:<9} {letter.get(name) or '-'}")
    click.echo(f"{'parked':<9} {local_time(letter['parked_at'])}")
    for attempt in letter["attempts"]:
        code = (attempt.get("error") or {}).get("code", "")
        where = f"{attempt['deployment']} ({attempt['tier']})"
        click.echo(f"attempt {attempt['number']}: {attempt['outcome']} at {where} {code}".rstrip())
    for reason in letter["reasons"]:
        click.echo(f"{reason['code']} ({reason['fault']}): {reason['message']}")


@dlq.command()
@click.argument("job_ids", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All parked jobs, or all that the filters leave.")
@_filters
@click.option("--policy", help="Run under this policy from now on.")
@json_option
def replay(job_ids: Sequence[str], everything: bool, policy: str | None, as_json: bool, **filters: Any) -> None:
    """Let parked jobs run again: everything about them is checked from the start. Doing it twice does no harm."""
    from fabric.client import Client

    with Client() as client:
        chosen = _chosen(client, job_ids, everything, filters)
        jobs = [client.replay(job_id, policy=policy) for job_id in chosen]
    if as_json:
        print_json(jobs)
        return
    for job in jobs:
        click.echo(f"{job['id']} {job['state']}")
    click.echo(f"{len(jobs)} replayed", err=True)


@dlq.command()
@click.argument("job_ids", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All parked jobs, or all that the filters leave.")
@_filters
@json_option
def drop(job_ids: Sequence[str], everything: bool, as_json: bool, **filters: Any) -> None:
    """Delete parked jobs for good; only the ledger remembers them."""
    from fabric.client import Client

    with Client() as client:
        dropped = [client.drop(job_id) for job_id in _chosen(client, job_ids, everything, filters)]
    if as_json:
        print_json(dropped)
        return
    for letter in dropped:
        click.echo(f"{letter['job_id']} dropped")
    click.echo(f"{len(dropped)} dropped", err=True)


def _chosen(client: Client, job_ids: Sequence[str], everything: bool, filters: dict[str, Any]) -> Iterator[str]:
    """The jobs that are named, or all that the filters leave."""
    filtered = any(value is not None for value in filters.values())
    if job_ids and (everything or filtered):
        raise click.UsageError("Name jobs, or choose them by --all and filters; not both.")
    if not job_ids and not everything and not filtered:
        raise click.UsageError("Name jobs, or choose them: --all, --reason, --tier, --model, --older-than, …")
    if job_ids:
        return iter(job_ids)
    # All of them before the first one moves: what is replayed may be parked again meanwhile.
    return iter([letter["job_id"] for letter in client.dead_letters(**filters)])
