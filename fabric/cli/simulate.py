"""``fabric policy simulate``."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from fabric.cli.output import json_option, print_json, print_table
from fabric.cli.start import config_option, data_dir_option
from fabric.contracts.errors import InvalidRequest, Unavailable

if TYPE_CHECKING:
    from fabric.contracts.experience import Experience
    from fabric.contracts.job import Endpoint, Priority
    from fabric.contracts.terms import Privacy
    from fabric.ledger.usage import Used
    from fabric.routing.simulation import Past, Side, Simulation

_MOST = 10_000
_STORE_S = 1.0


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--since", default="7d", show_default=True, help="A date, a time, or how long ago: 7d, 12h.")
@click.option("--limit", type=click.IntRange(1), default=_MOST, show_default=True, help="Jobs at most, the newest.")
@config_option
@data_dir_option
@json_option
def simulate(file: Path, since: str, limit: int, config: Path | None, data_dir: Path | None, as_json: bool) -> int:
    """Decide the ledger's jobs again under the configuration FILE, and compare with the one of now.

    Nothing is changed and nothing runs. Lines of batches that were planned as a whole are decided one by one, as if
    there were no plan, and counted. Ends with 1 if a job's label, as it is now, wouldn't permit where
    FILE would send it.
    """
    from fabric.cli.on_ledger import on_ledger
    from fabric.gateway.spending import moment_ms
    from fabric.ledger import batches, usage
    from fabric.routing.simulation import simulate as decide_again
    from fabric.settings import load

    tried = load(file, {}).catalog
    try:
        since_ms = moment_ms(since, "--since", int(time.time() * 1000)) or 0
    except InvalidRequest as error:
        raise click.UsageError(error.message) from None
    with on_ledger(config, data_dir) as place:
        rows = place.ledger.read(usage.finished_since, since_ms, limit=limit)
        planned = place.ledger.read(batches.planned_since, since_ms)
        experience = _experience(place.settings.redis_url, asleep=not place.store_runs)
        found = decide_again(_past(rows, planned), place.settings.catalog, tried, experience)
    if as_json:
        print_json(_object(found))
    else:
        _print(found)
    return 1 if found.crossings else 0


def _past(rows: Iterable[Used], planned: Collection[str]) -> Iterable[Past]:
    from fabric.contracts.job import JobSpec, JobState, Usage
    from fabric.contracts.request import CAPABILITY
    from fabric.routing.simulation import Past

    for row in rows:
        spec = JobSpec(
            id=row.job_id,
            endpoint=cast("Endpoint", row.endpoint),
            model=row.model,
            tenant=row.tenant,
            key_id=row.key_id,
            privacy=cast("Privacy", row.privacy),
            priority=cast("Priority", row.priority),
            policy=row.policy,
            deadline_ms=row.deadline_ms,
            tags=row.tags,
            needs=(CAPABILITY[row.endpoint],),
            prompt_tokens=row.input_tokens,
            max_output_tokens=row.output_tokens or None,
            redacted=row.tier == "cloud",
        )
        used = Usage(row.input_tokens, row.output_tokens, row.cached_input_tokens)
        yield Past(
            spec,
            row.deployment or "",
            used,
            row.cost_usd - row.machine_usd,
            row.accepted_ms,
            row.finished_ms if row.state == JobState.SUCCEEDED else None,
            planned=row.batch_id in planned,
        )


def _experience(redis_url: str, *, asleep: bool) -> Experience:
    """What has been learned of places, where the store is there to tell."""
    from fabric.contracts.experience import Experience
    from fabric.store import Store, reads

    if asleep:
        return Experience()
    with contextlib.closing(Store(redis_url, timeout_s=_STORE_S)) as store, contextlib.suppress(Unavailable):
        return store(reads.experience())
    return Experience()


def _object(found: Simulation) -> dict[str, Any]:
    def side(one: Side) -> dict[str, Any]:
        shown: dict[str, Any] = {"cost_usd": one.cost_usd, "tiers": dict(one.tiers), "deployments": dict(one.places)}
        shown["in_time"] = one.in_time
        return shown | ({"mean_predicted_s": one.mean_finish_s} if one is not found.actual else {})

    sides = {name: side(getattr(found, name)) for name in ("actual", "before", "after")}
    counts = {name: getattr(found, name) for name in ("jobs", "unknown", "moved", "crossings", "deadlines", "planned")}
    return counts | sides | {"cost_difference_usd": found.after.cost_usd - found.before.cost_usd}


def _print(found: Simulation) -> None:
    sides = (found.actual, found.before, found.after)
    places = sorted({place for side in sides for place in side.places})
    rows: list[tuple[object, ...]] = [(place, *(side.places[place] for side in sides)) for place in places]
    print_table(("JOBS AT", "RAN", "NOW", "TRIED"), rows)
    click.echo()
    predicted = [None, *(side.mean_finish_s and f"{side.mean_finish_s:.2f} s" for side in sides[1:])]
    figures: list[tuple[object, ...]] = [
        ("cost of their tokens", *(f"${side.cost_usd:.4f}" for side in sides)),
        ("mean time, predicted", *predicted),
    ]
    if found.deadlines:
        hits = (f"{side.in_time} of {found.deadlines}" for side in sides)
        figures.append(("before their deadlines", *hits))
    print_table(("", "RAN", "NOW", "TRIED"), figures)
    click.echo(f"\n{found.jobs} jobs, {found.moved} would go elsewhere than now, {found.crossings} label crossings")
    if found.planned:
        click.echo(
            f"{found.planned} of them are lines of batches that were planned as a whole; "
            "NOW and TRIED place each by itself, as without a plan"
        )
    if found.unknown:
        click.echo(f"{found.unknown} more are of models that one of the two configurations doesn't have")
