"""The decision for one job: constraints, then the objective, then the ordered plan.

Pure: the same values in give the same decision out, in whatever order the candidates come.
"""

from __future__ import annotations

import hashlib

from fabric.contracts.catalog import Catalog
from fabric.contracts.decision import Decision, Elimination, Scored
from fabric.contracts.errors import ContextOverflow, ErrorInfo, InvalidRequest, ModelNotFound, NoEligibleDeployment
from fabric.contracts.job import JobSpec
from scheduler.constraints import check, worst_cost
from scheduler.objectives import DEFAULT_POLICY, POLICIES


def policy_hash(catalog: Catalog) -> str:
    """Names the exact catalogue and rules that a decision was made under."""
    return hashlib.blake2b(catalog.model_dump_json().encode(), digest_size=8).hexdigest()


def decide(spec: JobSpec, catalog: Catalog, hash_: str) -> Decision:
    """The plan for ``spec`` under the policy that it names, or under the default one."""
    policy = spec.policy or DEFAULT_POLICY
    objective = POLICIES.get(policy)
    model = catalog.by_model.get(spec.model)
    eliminated: list[Elimination] = []
    permitted: list[Scored] = []
    for preference, deployment in enumerate(model.deployments if model else ()):
        if objective is None:
            eliminated.append(Elimination(deployment.name, "rule", f"there is no policy {policy!r}"))
        elif (out := check(spec, deployment, catalog.privacy)) is not None:
            eliminated.append(out)
        else:
            score = objective(spec, deployment, preference)
            permitted.append(Scored(deployment.name, deployment.tier, score, worst_cost(spec, deployment)))
    permitted.sort(key=lambda candidate: (candidate.score, candidate.deployment))
    return Decision(policy, hash_, tuple(permitted), tuple(eliminated))


def refusal(spec: JobSpec, decision: Decision, catalog: Catalog) -> ErrorInfo:
    """Why a job with an empty plan can't run, for its caller."""
    if spec.model not in catalog.by_model:
        return ModelNotFound(f"There is no model {spec.model!r} here any more.", param="model").info
    if spec.policy is not None and spec.policy not in POLICIES:
        known = ", ".join(sorted(POLICIES))
        return InvalidRequest(f"There is no policy {spec.policy!r}; there are {known}.", param="fabric.policy").info
    if all(out.reason == "context" for out in decision.eliminated):
        details = "; ".join(f"{out.deployment}: {out.detail}" for out in decision.eliminated)
        return ContextOverflow(f"The request is too long for every deployment of {spec.model!r} ({details}).").info
    reasons = "; ".join(f"{out.deployment}: {out.reason} ({out.detail})" for out in decision.eliminated)
    return NoEligibleDeployment(f"No deployment of {spec.model!r} may run this job: {reasons}.").info
