"""What ``fabric doctor`` says of the deployments: by the same code that a worker starts them with."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from fabric.cli.finding import Finding
from fabric.cli.on_ledger import quiet
from fabric.contracts.catalog import Deployment
from fabric.contracts.errors import FabricError

_GIB = 2**30


def look(deployment: Deployment, given: Mapping[str, str]) -> Iterator[Finding]:
    """``given``: the environment. Nothing is loaded, and nobody is asked."""
    from workers.engines import build

    part = f"deployment {deployment.name}"
    try:
        with quiet("workers"):  # a worker says it, too
            build(deployment)
            own = _own_engine(part, deployment)
    except FabricError as error:
        yield Finding(part, "error", "can't work as configured", error.message)
        return
    if own is not None:
        yield own
    if deployment.api_key_env or deployment.api_key_file:
        yield _key(part, deployment, given)


def _own_engine(part: str, deployment: Deployment) -> Finding | None:
    """
    Raises:
        FabricError: it can't be started.
    """
    if deployment.engine == "llamacpp":
        return _file(part, deployment)
    if deployment.engine == "vllm" and not deployment.base_url:
        return _command(part, deployment)
    return None


def _file(part: str, deployment: Deployment) -> Finding:
    from fabric.fit.gguf import read_model
    from fabric.fit.memory import available_memory
    from workers.engines.llamacpp.machine import physical_cores
    from workers.engines.llamacpp.options import model_path, parse_options, plan

    file, memory = model_path(deployment), available_memory()
    found = plan(deployment, parse_options(deployment), read_model(file), cores=physical_cores(), memory=memory)
    size = f"{found.need / _GIB:.2f} GiB of {memory / _GIB:.1f}"
    said = f"{file.name} needs {size} for {found.slots} slots of {found.context} tokens"
    if found.context < deployment.context_window:
        todo = (
            f"Set `context_window: {found.context}`: that is what the model was trained with, longer ones are refused."
        )
        return Finding(part, "warning", said, todo)
    return Finding(part, "ok", said)


def _command(part: str, deployment: Deployment) -> Finding:
    from fabric.fit.memory import gpu_memory
    from workers.engines.api_options import options_of
    from workers.engines.vllm_options import VllmOptions, missing_for_tools
    from workers.engines.vllm_process import located
    from workers.engines.vllm_room import check_room

    options = options_of(deployment, VllmOptions)
    check_room(deployment, options, gpu_memory())
    program = located(options.command)[0]
    if shutil.which(program) is None:
        todo = (
            "Install vLLM where its worker runs (the extra `gpu`), or set `options.command`; here it may be missing on "
            "purpose."
        )
        return Finding(part, "warning", f"there is no command {program} here", todo)
    if (missing := missing_for_tools(deployment, options)) is not None:
        return Finding(part, "warning", f"vLLM is {program}, but takes no tools", f"{missing}.")
    return Finding(part, "ok", f"vLLM is {program}")


def _key(part: str, deployment: Deployment, given: Mapping[str, str]) -> Finding:
    if deployment.api_key_env:
        if given.get(deployment.api_key_env):
            return Finding(part, "ok", f"its key is in {deployment.api_key_env}")
        todo = f"Set {deployment.api_key_env} where its worker runs; here it may be missing on purpose."
        return Finding(part, "warning", "its key isn't in this environment", todo)
    file = Path(deployment.api_key_file or "").expanduser()
    if not file.is_file() or not os.access(file, os.R_OK):
        todo = "Put it there where its worker runs; here it may be missing on purpose."
        return Finding(part, "warning", f"its key isn't in {file}", todo)
    if stat.S_IMODE(file.stat().st_mode) & 0o077:
        return Finding(part, "warning", f"others can read its key in {file}", f"chmod 600 {file}")
    return Finding(part, "ok", f"its key is in {file}")
