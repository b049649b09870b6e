"""What the recorder's process writes into the audit trail: it sees every job's end, and every line of a batch."""

from __future__ import annotations

import re

import orjson

from fabric.contracts.catalog import Catalog, Privacy
from fabric.contracts.completion import Completion
from fabric.contracts.errors import NoEligibleDeployment
from fabric.contracts.job import JobSpec
from fabric.ledger.batches import Batch
from fabric.routing import policy_hash
from fabric.trail import Trail

#: How ``fabric.routing.refusal`` words why a candidate was out.
_OUT = re.compile(r": (privacy|permission|region) \(")


def note_blocked(trail: Trail, completion: Completion) -> None:
    """A job that ended because its label, or its key, left it no place to run."""
    if completion.error is None or NoEligibleDeployment.code.encode() not in completion.error:
        return
    error = orjson.loads(completion.error)
    if error.get("code") != NoEligibleDeployment.code:
        return
    reasons = sorted(set(_OUT.findall(str(error.get("message", "")))))
    if reasons:
        spec = completion.spec
        detail = {"reason": ",".join(reasons), "model": spec.model, "label": spec.privacy}
        trail.note("request.blocked", spec.key_id or "open", tenant=spec.tenant, detail=detail)


def note_raised_line(trail: Trail, batch: Batch, asked: Privacy, got: Privacy) -> None:
    detail = {"from": asked, "to": got}
    trail.note("label.raised", batch.key_id or "open", tenant=batch.tenant, subject=batch.id, detail=detail)


def note_redacted_line(trail: Trail, batch: Batch, spec: JobSpec) -> None:
    detail: dict[str, object] = {"label": spec.privacy, "entities": spec.entities}
    trail.note("request.redacted", batch.key_id or "open", tenant=batch.tenant, subject=batch.id, detail=detail)


def noted_policy(trail: Trail, catalog: Catalog | None) -> Catalog | None:
    """The catalogue that counts from here on, if there is another one; passed through."""
    if catalog is not None:
        trail.policy_in_force(policy_hash(catalog))
    return catalog
