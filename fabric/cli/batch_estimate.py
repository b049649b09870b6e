"""``fabric batch estimate``: what a file of requests would cost and how long it would take, before it is sent.

Lines that are alike but for their text are asked for together: one of each kind and size goes to the dry run.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from math import log
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fabric.cli.duration import deadline_option, max_cost_option
from fabric.cli.output import json_option, print_json, print_table
from fabric.cli.spending import usd
from fabric.contracts.catalog import Price
from fabric.contracts.errors import FabricError
from fabric.pricing import machine_usd
from fabric.routing.batch_plan import BatchPlan, Group, Room, Shortfall, Way, plan_batch

if TYPE_CHECKING:
    from fabric.client import Client

#: Sizes of one kind that count as alike: each is that much longer than the one before.
_RATIO = 1.2
#: Dry runs of one estimate; of files with more kinds and sizes the rarest are counted as the others are.
_ASKED = 300
#: What a request says in its own words, which say nothing of its cost but their length.
_TEXTS = frozenset(("messages", "prompt", "input", "user", "metadata", "seed", "stop"))
_EARLIER = "30d"


@dataclass(slots=True)
class Kind:
    """Lines that are asked for together."""

    body: dict[str, Any]  #: one of them
    lines: int = 0


@dataclass(slots=True)
class Estimate:
    """Seconds and US dollars. ``places``: deployment -> what would run there."""

    lines: int = 0
    unreadable: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    places: dict[str, dict[str, Any]] = field(default_factory=dict)
    cost_usd: float = 0.0
    finish_s: float | None = None
    plan: BatchPlan | None = None  #: of a batch with a deadline or a cap
    #: Tier -> ``p50`` and ``p90`` of how wrong predicted ends were there: shares of what came true.
    finish_errors: dict[str, dict[str, float | None]] = field(default_factory=dict)


@click.command("estimate")
@click.argument("source", metavar="IN.jsonl", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@deadline_option
@max_cost_option
@json_option
def estimate_command(source: Path, deadline: float | None, max_cost: float | None, as_json: bool) -> None:
    """Say what a file would cost and when it would be done. Nothing runs and nothing is stored.

    Each line counts as if it went to its first choice, with the answers' length as learned; the error of earlier
    expectations is told beside it. With --deadline or --max-cost the lines are placed by a plan of the whole, as they
    are when the batch is started with them.
    """
    from fabric.client import Client

    with source.open("rb") as lines:
        kinds, unreadable = kinds_of(lines)
    with Client() as client:
        found = estimate(client, kinds, deadline, max_cost)
        earlier = client.costs_summary(since=_EARLIER)["total"]
    found.unreadable = unreadable
    shown = _object(found, earlier)
    print_json(shown) if as_json else _show(shown)


def kinds_of(lines: Iterable[bytes]) -> tuple[list[Kind], int]:
    """The kinds, the most frequent first, and how many lines can't be read. Memory grows with the kinds alone."""
    kinds: dict[Hashable, Kind] = {}
    unreadable = 0
    for raw in lines:
        if not raw.strip():
            continue
        try:
            line = json.loads(raw)
            body = line["body"]
            rest = json.dumps({k: v for k, v in body.items() if k not in _TEXTS}, sort_keys=True)
        except (ValueError, TypeError, KeyError, AttributeError):
            unreadable += 1
            continue
        key = (line.get("url"), rest, round(log(len(raw), _RATIO)))
        kind = kinds.setdefault(key, Kind(body))
        kind.lines += 1
    return sorted(kinds.values(), key=lambda kind: -kind.lines), unreadable


def estimate(
    client: Client, kinds: list[Kind], deadline_s: float | None = None, max_cost_usd: float | None = None
) -> Estimate:
    """``deadline_s`` from now, ``max_cost_usd``: for all lines together."""
    found = Estimate(lines=sum(kind.lines for kind in kinds))
    tiers = client.status()["data"]
    found.finish_errors = {tier["tier"]: tier["prediction_error"]["finish"] for tier in tiers}
    deployments = {d["name"]: d for tier in tiers for d in tier["deployments"]}
    slots = {name: d["slots"] for name, d in deployments.items()}
    routes: list[tuple[float, list[dict[str, Any]]]] = []
    busy_s: defaultdict[str, float] = defaultdict(float)
    wait_s: dict[str, float] = {}
    known = True
    asked = kinds[:_ASKED]
    # Each dry run stands for the lines of its kind, and for its share of those that aren't asked for.
    share = found.lines / max(1, sum(kind.lines for kind in asked))
    for kind in asked:
        lines = kind.lines * share
        try:
            routed = client.route(_at_leisure(kind.body))
        except FabricError as error:
            if error.status not in (400, 404):
                raise  # it says nothing of the line
            found.refused[error.message] += round(lines)
            continue
        chosen = routed["chosen"]
        if chosen is None:
            found.refused[routed["error"]["message"]] += round(lines)
            continue
        routes.append((lines, routed["decision"]["plan"]))
        name = chosen["deployment"]
        place = found.places.setdefault(name, {"tier": chosen["tier"], "lines": 0.0, "cost_usd": 0.0})
        place["lines"] += lines
        place["cost_usd"] += lines * chosen["expected_cost_usd"]
        if chosen["expected_finish_s"] is None:
            known = False  # nobody works there now
            continue
        waits = chosen["expected_wait_s"] or 0.0
        wait_s[name] = max(wait_s.get(name, 0.0), waits)
        busy_s[name] += lines * (chosen["expected_finish_s"] - waits)
    if deadline_s is not None or max_cost_usd is not None:
        _plan(found, routes, deployments, deadline_s, max_cost_usd)
        return found
    found.cost_usd = sum(place["cost_usd"] for place in found.places.values())
    if known and found.places:
        found.finish_s = max(wait_s[name] + busy_s[name] / max(1, slots.get(name, 1)) for name in busy_s)
    return found


def _plan(
    found: Estimate,
    routes: list[tuple[float, list[dict[str, Any]]]],
    deployments: Mapping[str, dict[str, Any]],
    deadline_s: float | None,
    max_cost_usd: float | None,
) -> None:
    """Places, cost and time as the batch's plan would have them. ``routes``: lines, and where they may go."""
    groups = []
    wait_s: dict[str, float] = {}
    for number, (lines, candidates) in enumerate(routes):
        ways = []
        for candidate in candidates:
            if not candidate["live"]:
                continue
            place = deployments[candidate["deployment"]]
            waits = candidate["expected_wait_s"] or 0.0
            wait_s[place["name"]] = max(wait_s.get(place["name"], 0.0), waits)
            service_s = candidate["expected_finish_s"] - waits
            cost = candidate["expected_cost_usd"]
            machine = machine_usd(Price(**place["price"]), service_s, place["slots"] // max(1, place["workers"]))
            ways.append(Way(place["name"], cost, max(0.0, cost - machine), service_s, candidate["measured"]))
        groups.append(Group(f"{number:04}", round(lines), tuple(ways)))
    rooms = {name: Room(deployments[name]["slots"], waits) for name, waits in wait_s.items()}
    found.plan = plan = plan_batch(groups, rooms, deadline_s, max_cost_usd)
    tiers = {c["deployment"]: c["tier"] for _, candidates in routes for c in candidates}
    found.places = {}
    for share in plan.shares:
        place = found.places.setdefault(share.place, {"tier": tiers[share.place], "lines": 0.0, "cost_usd": 0.0})
        place["lines"] += share.lines
        place["cost_usd"] += share.cost_usd
    found.cost_usd = plan.cost_usd
    found.finish_s = plan.finish_s if plan.shares else None


def _at_leisure(body: Mapping[str, Any]) -> dict[str, Any]:
    """As a line of a batch, which gives way to others."""
    options = body.get("fabric")
    return {**body, "fabric": {"priority": "batch", **(options if isinstance(options, dict) else {})}}


def _object(found: Estimate, earlier: Mapping[str, Any]) -> dict[str, Any]:
    expected, actual = earlier["expected_usd"], earlier["actual_of_expected_usd"]
    tiers = sorted({place["tier"] for place in found.places.values()})
    return {
        "object": "batch.estimate",
        "lines": found.lines,
        "unreadable_lines": found.unreadable,
        "refused_lines": sum(found.refused.values()),
        "refusals": dict(found.refused),
        "expected_cost_usd": found.cost_usd,
        "expected_finish_s": found.finish_s,
        "places": [
            {"deployment": name, **place, "lines": round(place["lines"])}
            for name, place in sorted(found.places.items())
        ],
        **({} if found.plan is None else {"shortfall": _shortfall(found.plan.shortfall)}),
        "earlier": {
            "since": _EARLIER,
            "actual_to_expected": actual / expected if expected else None,
            "prediction_error": earlier["prediction_error"],
            "finish_error": {
                tier: error
                for tier in tiers
                if (error := found.finish_errors.get(tier)) is not None and error["p50"] is not None
            },
        },
    }


def _shortfall(short: Shortfall | None) -> dict[str, Any] | None:
    return None if short is None else {**asdict(short), "detail": short.detail}


def _show(shown: Mapping[str, Any]) -> None:
    print_table(
        ("DEPLOYMENT", "TIER", "LINES", "USD"),
        [(p["deployment"], p["tier"], p["lines"], usd(p["cost_usd"])) for p in shown["places"]],
    )
    click.echo(
        f"\n{shown['lines']:,} lines: about ${usd(shown['expected_cost_usd'])}, {_time(shown['expected_finish_s'])}"
    )
    earlier = shown["earlier"]
    if earlier["prediction_error"] is not None and earlier["actual_to_expected"] is not None:
        click.echo(
            f"earlier requests cost {earlier['actual_to_expected']:.0%} of what was expected of them; "
            f"each one was missed by {earlier['prediction_error']:.0%} in the mean"
        )
    for tier, error in earlier["finish_error"].items():
        click.echo(
            f"earlier answers of {tier} came {error['p50']:.0%} sooner or later than predicted in the median, "
            f"one in ten by more than {error['p90']:.0%}"
        )
    if shown.get("shortfall"):
        click.echo(f"not all can be done: {shown['shortfall']['detail']}")
    if shown["unreadable_lines"]:
        click.echo(f"{shown['unreadable_lines']:,} lines can't be read")
    for message, count in shown["refusals"].items():
        click.echo(f"{count:,} lines would be refused: {message}")


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "and nobody can tell how long: no worker is there for some"
    if seconds < 120:
        return f"done in about {seconds:.0f} s"
    return f"done in about {seconds / 60:.0f} min" if seconds < 7200 else f"done in about {seconds / 3600:.1f} h"
