"""What an answer costs: at worst, and as far as can be expected. US dollars."""

from __future__ import annotations

from fabric.contracts.catalog import Deployment
from fabric.contracts.job import JobSpec


def most_output_tokens(spec: JobSpec, deployment: Deployment) -> int:
    """The limit given, or what the window leaves; none for embeddings."""
    if spec.endpoint == "/v1/embeddings":
        return 0
    if spec.max_output_tokens is not None:
        return spec.max_output_tokens
    return max(0, deployment.context_window - spec.prompt_tokens)


def worst_cost(spec: JobSpec, deployment: Deployment) -> float:
    """If the answer takes all that it may: what a cap is held against."""
    return cost_of(spec, deployment, most_output_tokens(spec, deployment))


def cost_of(spec: JobSpec, deployment: Deployment, output_tokens: float) -> float:
    price = deployment.price
    return (spec.prompt_tokens * price.input_per_million + output_tokens * price.output_per_million) / 1e6
