"""What an answer costs at a deployment: at worst, and as far as can be expected. US dollars."""

from __future__ import annotations

from fabric.contracts.catalog import Deployment
from fabric.contracts.job import JobSpec
from fabric.pricing import machine_usd, token_usd
from fabric.routing.world import DeploymentState


def most_output_tokens(spec: JobSpec, deployment: Deployment) -> int:
    """Of one answer: the limit given, or what the window leaves; none for embeddings."""
    if spec.endpoint == "/v1/embeddings":
        return 0
    if spec.max_output_tokens is not None:
        return spec.max_output_tokens
    return max(0, deployment.context_window - spec.prompt_tokens)


def worst_cost(spec: JobSpec, deployment: Deployment) -> float:
    """If every answer takes all that it may and no input is cached: what a cap is held against.

    Of hours of the operator's own machines nothing: they cost the same, whoever uses them.
    """
    return token_usd(deployment.price, spec.prompt_tokens, most_output_tokens(spec, deployment) * spec.answers)


def expected_cost(
    spec: JobSpec, deployment: Deployment, output_tokens: float, service_s: float, state: DeploymentState
) -> float:
    """``output_tokens``: of all answers together, as learned. ``service_s``: seconds in one of a worker's slots.
    ``state``: the deployment's."""
    price = deployment.price
    cost = token_usd(price, spec.prompt_tokens, output_tokens)
    if price.machine_usd_per_hour:
        slots = state.slots // state.workers if state.workers else deployment.slots or 1
        cost += machine_usd(price, service_s, slots)
    return cost
