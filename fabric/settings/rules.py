"""What is wrong with rules beyond their shape: conditions, and names of places and policies that aren't there."""

from __future__ import annotations

from collections.abc import Iterator

from fabric.contracts.catalog import Catalog
from fabric.contracts.rule import Rule

Location = tuple[int | str, ...]


def complaints(catalog: Catalog) -> Iterator[tuple[Location, str]]:
    """Where in the file, and what."""
    for number, rule in enumerate(catalog.rules):
        for location, said in _wrong(rule, catalog):
            yield ("rules", number, *location), said
    names: set[str] = set()
    for number, rule in enumerate(catalog.rules):
        if rule.name and rule.name in names:
            yield ("rules", number, "name"), f"two rules have the name `{rule.name}`"
        names.add(rule.name)


def _wrong(rule: Rule, catalog: Catalog) -> Iterator[tuple[Location, str]]:
    yield from _names(rule, catalog)
    if rule.when is None:
        return
    from fabric.contracts.condition import AT_PLACING, Condition  # a library that costs nothing without rules

    try:
        reads = Condition(rule.when, catalog.rule_headers).reads
    except ValueError as error:
        yield ("when",), str(error)
        return
    if rule.at_the_door and (unknown := AT_PLACING.intersection(reads)):
        yield (
            ("when",),
            f"`{min(unknown)}` isn't known when a request comes: only rules that say where a job runs may read it",
        )
    if rule.set and rule.set.priority and rule.at_placing and "priority" in reads:
        yield (
            ("when",),
            "the rule reads the `priority` that it sets, so it wouldn't match any more when the job is placed: "
            "make it two",
        )


def _names(rule: Rule, catalog: Catalog) -> Iterator[tuple[Location, str]]:
    deployments = sorted(catalog.by_deployment)
    regions = sorted({deployment.region for deployment in catalog.by_deployment.values()})
    for part in ("require", "prefer"):
        where = getattr(rule, part)
        if where is not None:
            yield from _unknown((part, "deployment"), where.deployment or (), deployments, "deployment")
            yield from _unknown((part, "region"), where.region or (), regions, "region")
    for part in ("canary", "shadow"):
        share = getattr(rule, part)
        if share is not None:
            yield from _unknown((part, "deployment"), (share.deployment,), deployments, "deployment")
    if rule.set is not None and rule.set.policy is not None:
        yield from _unknown(("set", "policy"), (rule.set.policy,), sorted(catalog.by_policy), "policy")


def _unknown(location: Location, names: tuple[str, ...], known: list[str], kind: str) -> Iterator[tuple[Location, str]]:
    for name in names:
        if name not in known:
            yield location, f"there is no {kind} `{name}`; there are {', '.join(known)}"
