"""Objectives: what makes one permitted candidate better than another. Lower scores go first.

Pure functions. Each policy is one objective; ties are broken by the deployment's name, so that the
order of the candidates never matters.
"""

from __future__ import annotations

from collections.abc import Callable

from fabric.contracts.catalog import Deployment
from fabric.contracts.job import JobSpec
from scheduler.constraints import worst_cost

#: Takes the job, a candidate and its place in the model's list of deployments.
Objective = Callable[[JobSpec, Deployment, int], float]

_LOCAL = ("cpu", "gpu")


def local_first(spec: JobSpec, deployment: Deployment, preference: int) -> float:
    """Local tiers before the cloud, then the operator's own order."""
    return (0 if deployment.tier in _LOCAL else 1_000) + preference


def cheapest(spec: JobSpec, deployment: Deployment, preference: int) -> float:
    """US dollars at worst, then the operator's order (a millionth of a cent a place)."""
    return worst_cost(spec, deployment) + preference * 1e-8


POLICIES: dict[str, Objective] = {"local-first": local_first, "cheapest": cheapest}
DEFAULT_POLICY = "local-first"
