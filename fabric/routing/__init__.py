"""The routing decision: constraints, forecast, objectives, plan. Pure: values in, values out.

The scheduler decides with it when a job is about to run, the gateway for a dry run: the same state in
gives the same decision out.

>>> decision = decide(spec, catalog, policy_hash(catalog), world)
>>> decision.chosen or refusal(spec, decision, catalog)
"""

from fabric.routing.admission import Admission, Denied, admit
from fabric.routing.constraints import label_blocks, reading_zones, walled_off
from fabric.routing.forecast import expected_output, late_after_s
from fabric.routing.lateness import too_near
from fabric.routing.plan import decide, policy_hash, policy_text, shape
from fabric.routing.reach import unreachable
from fabric.routing.refusal import refusal
from fabric.routing.rules import NO_PLACING, Moment, places_tag, reads_budgets, rulebook
from fabric.routing.tried import end_of_chain, waits_for
from fabric.routing.world import DeploymentState, World, world_of

__all__ = [
    "NO_PLACING",
    "Admission",
    "Denied",
    "DeploymentState",
    "Moment",
    "World",
    "admit",
    "decide",
    "end_of_chain",
    "expected_output",
    "label_blocks",
    "late_after_s",
    "places_tag",
    "policy_hash",
    "policy_text",
    "reading_zones",
    "reads_budgets",
    "refusal",
    "rulebook",
    "shape",
    "too_near",
    "unreachable",
    "waits_for",
    "walled_off",
    "world_of",
]
