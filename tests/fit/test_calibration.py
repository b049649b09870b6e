"""The estimate against what llama.cpp really takes, run as the worker runs it: the peak of its resident memory.

The models are generated, with weights of zero in a sparse file; llama.cpp reads them all the same. A prompt of
more tokens than are computed at once fills every buffer but the mask, which is as long as the texts: contexts
are short here, so that what isn't touched of it doesn't matter.
"""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest

from fabric.contracts.catalog import Deployment
from fabric.fit import Ask, LlamaCpp, gguf_shape, read_model
from workers.engines.llamacpp.options import CHECKPOINTS, parse_options, plan
from workers.engines.llamacpp.server import Server

F16, Q4_0, Q8_0 = 1, 2, 8
PLENTY = 2**42

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="measured on Linux on x86-64 only"
)


@dataclass(frozen=True)
class Case:
    architecture: str
    shape: dict[str, Any]
    context: int
    parallel: int
    options: dict[str, Any] = field(default_factory=dict)


CASES = {
    "grouped queries": Case(
        "llama", {"layers": 4, "width": 768, "heads": 12, "kv_heads": 4, "inner": 2048, "vocabulary": 32000}, 4096, 4
    ),
    "all heads, quantised weights and cache": Case(
        "llama",
        {"layers": 4, "width": 512, "heads": 8, "kv_heads": 8, "inner": 1408, "vocabulary": 80_000, "kind": Q8_0},
        *(8192, 2),
        {"cache_type_k": "q8_0", "cache_type_v": "q8_0"},
    ),
    "weights that are repacked": Case(
        "llama", {"layers": 8, "width": 1024, "heads": 16, "kv_heads": 4, "inner": 2816, "kind": Q4_0}, 4096, 2
    ),
    "repacked and not mapped": Case(
        "llama",
        {"layers": 8, "width": 1024, "heads": 16, "kv_heads": 4, "inner": 2816, "kind": Q4_0, "tied": True},
        *(4096, 2),
        {"mmap": False},
    ),
    "mixture of experts": Case(
        "llama", {"layers": 4, "width": 512, "heads": 8, "kv_heads": 2, "inner": 1024, "experts": 16}, 8192, 2
    ),
    "sliding windows": Case(
        "gemma3",
        {"layers": 12, "width": 512, "heads": 4, "kv_heads": 2, "head": 128, "inner": 1536, "window": 512}
        | {"vocabulary": 64_000},
        *(4096, 1),
    ),
    "latent attention": Case(
        "deepseek2",
        {"layers": 5, "width": 512, "heads": 8, "rank": 256, "rope": 64, "head": 64, "inner": 1536, "experts": 12}
        | {"vocabulary": 32000},
        *(16384, 2),
    ),
    "states": Case("mamba", {"layers": 6, "width": 768, "vocabulary": 64_000}, 4096, 4),
    "states per head": Case("mamba2", {"layers": 6, "width": 768, "vocabulary": 64_000, "groups": 2}, 4096, 2),
    "states and attention": Case(
        "jamba",
        {"layers": 8, "width": 512, "heads": 8, "kv_heads": 4, "inner": 1408, "vocabulary": 64_000},
        *(8192, 4),
    ),
}


def peak_bytes(pid: int) -> int:
    found = re.search(r"^VmHWM:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
async def test_within_a_tenth_of_the_measured_peak(case: Case, model_file: Callable[..., Path]) -> None:
    path = model_file(case.architecture, **case.shape)
    header = read_model(path)
    deployment = Deployment(
        name="measured",
        engine="llamacpp",
        tier="cpu",
        model=str(path),
        context_window=case.context,
        slots=case.parallel,
        capabilities=("completions",),
        options=case.options,
    )
    options = parse_options(deployment)
    params = plan(deployment, options, header, cores=2, memory=PLENTY).params
    assert params is not None
    server = Server("measured", params, 120.0)
    await server.start()
    try:
        prompt = [3 + number % 256 for number in range(params["n_ubatch"] + 8)]
        body = {"prompt": prompt, "max_tokens": 2, "ignore_eos": True, "cache_prompt": False}
        response = await server.request("/v1/completions", orjson.dumps(body))
        assert response.status == 200
        assert server.pid is not None
        measured = peak_bytes(server.pid)
    finally:
        await server.close()
    engine = LlamaCpp(gguf_shape(header), batch=params["n_ubatch"], mmap=options.mmap, checkpoints=CHECKPOINTS)
    need = engine.need(Ask(case.context, case.parallel, options.cache_type_k, options.cache_type_v))
    print(
        f"{measured / 2**20:.0f} MiB measured, {need.total / 2**20:.0f} estimated, {need.total / measured:.3f}; {need}"
    )
    assert need.total == pytest.approx(measured, rel=0.1)
