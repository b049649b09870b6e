"""Engines: where tokens come from. ``build`` picks the class by the deployment's ``engine``."""

from __future__ import annotations

from fabric.contracts.catalog import Deployment
from fabric.contracts.errors import ConfigError
from workers.engines.engine import Engine


def build(deployment: Deployment) -> Engine:
    """
    Raises:
        ConfigError: this build of the fabric has no such engine.
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
    raise ConfigError(
        f"Deployment {deployment.name!r}: this version has no engine {deployment.engine!r}; use llamacpp or mock."
    )
