"""Engines: where tokens come from. ``build`` picks the class by the deployment's ``engine``."""

from __future__ import annotations

from fabric.contracts.catalog import Deployment
from workers.engines.engine import Engine


def build(deployment: Deployment) -> Engine:
    """
    Raises:
        ConfigError: the deployment's options are wrong.
    """
    if deployment.engine == "mock":
        from workers.engines.mock import MockEngine

        return MockEngine(deployment)
    if deployment.engine == "llamacpp":
        from workers.engines.llamacpp import LlamaCppEngine

        return LlamaCppEngine(deployment)
    if deployment.engine == "openai":
        from workers.engines.openai import OpenAIEngine

        return OpenAIEngine(deployment)
    if deployment.engine == "vllm":
        from workers.engines.vllm import VllmEngine

        return VllmEngine(deployment)
    from workers.engines.anthropic import AnthropicEngine

    return AnthropicEngine(deployment)
