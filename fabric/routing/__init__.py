"""The routing decision: constraints, forecast, objectives, plan. Pure: values in, values out.

The scheduler decides with it when a job is about to run, the gateway for a dry run: the same state in
gives the same decision out.

>>> decision = decide(spec, catalog, policy_hash(catalog), world)
>>> decision.chosen or refusal(spec, decision, catalog)
"""

from fabric.routing.plan import decide, policy_hash, shape
from fabric.routing.refusal import refusal
from fabric.routing.world import DeploymentState, World, world_of

__all__ = ["DeploymentState", "World", "decide", "policy_hash", "refusal", "shape", "world_of"]
