"""``fabric policy``: what the rules say, before they are used and after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fabric.cli.decision import show_decision
from fabric.cli.output import json_option, print_json, print_table
from fabric.cli.simulate import simulate
from fabric.contracts.catalog import PRIVACY_LABELS, Catalog, Model, Privacy
from fabric.contracts.errors import ConfigError, NotFound
from fabric.contracts.rule import Rule


@click.group()
def policy() -> None:
    """Check and try policies, and explain a job's decision."""


policy.add_command(simulate)


@policy.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@json_option
def check(file: Path, as_json: bool) -> None:
    """Check a configuration FILE: its keys and values, its policies and rules, and where each label may go.

    A wrong one ends with status 78 and the line, and so does a rule that could never count. Nothing needs to
    run, and the environment doesn't count.
    """
    from fabric.routing import policy_hash, unreachable
    from fabric.settings import complain, load

    catalog = load(file, {}).catalog
    if dead := unreachable(catalog):
        raise ConfigError(complain(file, [(("rules", number), why) for number, why in dead]))
    places = [
        {"model": model.name, "privacy": label, "deployments": _permitted(model, label, catalog)}
        for model in catalog.models
        for label in PRIVACY_LABELS
    ]
    policies = {name: known.model_dump(exclude_defaults=True) for name, known in sorted(catalog.by_policy.items())}
    if as_json:
        shown = {"ok": True, "policy_hash": policy_hash(catalog), "default_policy": catalog.default_policy}
        rules = [rule.model_dump(exclude_defaults=True) for rule in catalog.rules]
        print_json({**shown, "policies": policies, "rules": rules, "places": places})
        return
    print_table(
        ("POLICY", "KIND", "MAX LATENCY", "MAX COST", "WEIGHTS"),
        [
            (
                name + (" (default)" if name == catalog.default_policy else ""),
                known["kind"],
                _unit(known.get("max_latency_s"), "{:g} s"),
                _unit(known.get("max_cost_usd"), "${:g}"),
                " ".join(f"{part} {weight:g}" for part, weight in known.get("weights", {}).items()) or None,
            )
            for name, known in policies.items()
        ],
    )
    if catalog.rules:
        click.echo()
        print_table(
            ("RULE", "WHEN", "COUNTS", "DOES"),
            [
                (rule.name or f"rule {number}", rule.when or "always", _moments(rule), _does(rule))
                for number, rule in enumerate(catalog.rules, 1)
            ],
        )
    click.echo()
    print_table(
        ("MODEL", "PRIVACY", "MAY RUN ON"),
        [(place["model"], place["privacy"], ", ".join(place["deployments"]) or "nothing") for place in places],
    )
    click.echo(f"\n{file} is right (rules {policy_hash(catalog)})")


@policy.command()
@click.argument("job_id")
@click.option("--text", is_flag=True, help="Also show the policies, rules and privacy of that moment, as JSON.")
@json_option
def explain(job_id: str, text: bool, as_json: bool) -> None:
    """Say why a job runs, or ran, where it does: the plan, and what eliminated every other place."""
    from fabric.client import Client

    with Client() as client:
        job = client.job(job_id).refresh()
        decision: dict[str, Any] | None = job.get("decision")
        under = client.policy(decision["policy_hash"]) if text and decision else None
    if decision is None:
        waits = job["state"] == "queued"
        why = "it still waits for room" if waits else "its record has expired, or it ended before it was decided"
        raise NotFound(f"There is no decision of {job_id}: {why}.")
    if as_json:
        shown = {"id": job["id"], "state": job["state"], "privacy": job.get("privacy"), "decision": decision}
        print_json({**shown, **({"policy": under} if under else {})})
        return
    click.echo(f"{job['id']} {job['state']}, label {job.get('privacy')}")
    show_decision(decision)
    for attempt in job.get("attempts") or ():
        click.echo(f"attempt {attempt['number']}: {attempt['outcome']} at {attempt['deployment']} ({attempt['tier']})")
    if under:
        print_json(under)


def _moments(rule: Rule) -> str:
    moments = (("at the door", rule.at_the_door), ("when placed", rule.at_placing))
    return " and ".join(moment for moment, counts in moments if counts)


def _does(rule: Rule) -> str:
    given = rule.model_dump(exclude_none=True, exclude={"name", "when"})
    return "; ".join(f"{action} {_inline(value)}" if value is not True else action for action, value in given.items())


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_inline(inner)}" for name, inner in value.items())
    return " or ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _permitted(model: Model, label: Privacy, catalog: Catalog) -> list[str]:
    """The deployments that the label leaves, in the operator's order."""
    from fabric.contracts.job import JobSpec
    from fabric.routing.constraints import NO_LIMITS
    from fabric.routing.constraints import check as check_one

    spec = JobSpec("job_check", "/v1/chat/completions", model.name, privacy=label)
    rule = catalog.privacy.of(label)
    return [d.name for d in model.deployments if check_one(spec, d, rule, NO_LIMITS) is None]


def _unit(value: float | None, form: str) -> str | None:
    return None if value is None else form.format(value)
