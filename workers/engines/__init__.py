"""Engines: where tokens come from. ``build`` picks the class by the deployment's ``engine``."""

from __future__ import annotations

from collections.abc import Callable

from fabric.contracts.catalog import Deployment
from workers.engines.batch_engine import BatchEngine
from workers.engines.engine import Engine
from workers.engines.provider_batch import Register
from workers.engines.provider_limits import Board
from workers.engines.shelf import Shelf


def build(
    deployment: Deployment,
    board: Callable[[Deployment], Board] | None = None,
    register: Callable[[Deployment], Register] | None = None,
    shelf: Shelf | None = None,
) -> Engine:
    """``board`` gives what is known of the rate limit of a hosted API; without it, each engine goes by itself.
    ``register`` keeps which job is in which provider batch; without it, that is forgotten with the process.
    ``shelf`` is the memory that the worker's models of llama.cpp share; without it, each takes what is free.

    Raises:
        ConfigError: the deployment's options are wrong.
    """
    if deployment.engine == "mock":
        from workers.engines.mock import MockEngine

        return MockEngine(deployment)
    if deployment.engine == "llamacpp":
        from workers.engines.llamacpp import LlamaCppEngine

        return LlamaCppEngine(deployment, shelf)
    if deployment.engine == "openai":
        from workers.engines.openai import OpenAIEngine

        return OpenAIEngine(deployment, board(deployment) if board else None)
    if deployment.engine == "openai_batch":
        from workers.engines.openai_batch import OpenAIBatches

        return BatchEngine(deployment, OpenAIBatches(deployment), register(deployment) if register else None)
    if deployment.engine == "anthropic_batch":
        from workers.engines.anthropic_batch import AnthropicBatches

        return BatchEngine(deployment, AnthropicBatches(deployment), register(deployment) if register else None)
    if deployment.engine == "vllm":
        from workers.engines.vllm import VllmEngine

        return VllmEngine(deployment)
    from workers.engines.anthropic import AnthropicEngine

    return AnthropicEngine(deployment, board(deployment) if board else None)
