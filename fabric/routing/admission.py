"""A request at the door: refused by a rule, or let in with what the rule sets. Pure.

Rules of the door are asked once, when a request comes. A job that is in stays in, whatever the rules
say later; where it may run is asked again each time it is placed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from fabric.contracts.catalog import Catalog
from fabric.contracts.errors import FabricError
from fabric.contracts.job import JobSpec
from fabric.contracts.rule import Rule
from fabric.routing.rules import Moment, drawn, rulebook
from fabric.routing.world import World


class Denied(FabricError):
    """A rule refuses the request; the message is the rule's."""

    status, type, code, fault = 403, "policy_error", "denied_by_rule", "policy"

    def __init__(self, message: str, rule: str) -> None:
        super().__init__(message)
        self.rule = rule


class Admission(NamedTuple):
    """``shadow``: the deployment on which the job is to run a second time, if any."""

    spec: JobSpec
    shadow: str | None = None


def admit(spec: JobSpec, catalog: Catalog, hash_: str, now_ms: int) -> Admission:
    """The job as the first rule of the door that matches wants it.

    Raises:
        Denied: the rule refuses it.
    """
    book = rulebook(catalog, hash_)
    if book is None or not book.door:
        return Admission(spec)
    found = Moment(book, World(now_ms=now_ms)).at_the_door(spec)
    if found is None:
        return Admission(spec)
    name, rule = found
    if rule.deny is not None:
        raise Denied(rule.deny, name)
    return Admission(_changed(spec, rule, now_ms), _shadow(spec, name, rule))


def _changed(spec: JobSpec, rule: Rule, now_ms: int) -> JobSpec:
    if rule.set is None:
        return spec
    if rule.set.priority is not None:
        spec = replace(spec, priority=rule.set.priority)
    if rule.set.deadline_s is not None:
        latest_ms = now_ms + int(rule.set.deadline_s * 1000)
        spec = replace(spec, deadline_ms=min(latest_ms, latest_ms if spec.deadline_ms is None else spec.deadline_ms))
    return spec


def _shadow(spec: JobSpec, name: str, rule: Rule) -> str | None:
    """Only of what anybody may read, and in which no detector found anything: a shadow serves the operator,
    not the one whose text it is."""
    share = rule.shadow
    if share is None or spec.privacy != "public" or spec.entities or spec.shadow_of:
        return None
    return share.deployment if drawn(share, name, spec.id) else None
