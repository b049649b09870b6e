"""The catalogue of a fabric that nobody has configured: one model on this machine's CPU."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from fabric.contracts.catalog import Deployment, Model

DEFAULT_MODEL = "assistant"
#: Of a model file that the user names; more needs more memory per request that runs.
_CONTEXT_WINDOW = 4096
#: What the shipped model was trained with.
_SHIPPED_CONTEXT_WINDOW = 1024


def shipped_model() -> Path:
    """The tiny model that comes with the fabric: for trying things out, not for its answers."""
    return Path(str(files("fabric") / "models" / "tiny.gguf"))


def default_model(file: Path | None) -> Model:
    """``file``: the GGUF to serve instead of the shipped one."""
    deployment = Deployment(
        name=f"{DEFAULT_MODEL}-cpu",
        engine="llamacpp",
        tier="cpu",
        model=str(file or shipped_model()),
        context_window=_CONTEXT_WINDOW if file else _SHIPPED_CONTEXT_WINDOW,
        capabilities=("chat", "completions", "embeddings", "json_schema", "grammar", "logprobs"),
    )
    return Model(name=DEFAULT_MODEL, deployments=(deployment,))
