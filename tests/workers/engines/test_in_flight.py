"""512 requests in flight from one process, however few files the shell lets a process open by itself."""

from __future__ import annotations

import asyncio
import os
import resource
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

IN_FLIGHT = 512
#: What some systems begin with.
SOFT = 256
ROOT = Path(__file__).parents[3]
#: A worker's beginning, then requests at once, half of them streams: says how many were answered.
PROCESS = f"""
import asyncio, resource, sys
from fabric.cli.start import begin
from fabric.contracts.catalog import Deployment
from workers.engines.engine import Request
from workers.engines.vllm import VllmEngine

async def main():
    engine = VllmEngine(Deployment(engine="vllm", tier="gpu", name="big", model="org/name", base_url=sys.argv[1]))
    await engine.start()
    body = {{"messages": [{{"role": "user", "content": "Hi"}}]}}
    asked = (Request(str(n), "/v1/chat/completions", body, stream=n % 2 > 0) for n in range(engine.slots))
    answers = await asyncio.gather(*(engine.run(request, lambda chunk: None) for request in asked))
    await engine.close()
    print(len(answers))

resource.setrlimit(resource.RLIMIT_NOFILE, ({SOFT}, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
begin(None)
asyncio.run(main())
"""


@pytest.mark.skipif(
    resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 3 * IN_FLIGHT,
    reason="the limit of open files (ulimit -n) is too low",
)
async def test_one_process_holds_512(start_provider: Callable[..., Awaitable[Any]], tmp_path: Path) -> None:
    everyone = asyncio.Barrier(IN_FLIGHT)
    choice = {"index": 0, "finish_reason": "stop"}

    async def play(received: Any, wire: Any) -> None:
        if received.path == "/v1/models":
            await wire.json({"data": [{"id": "org/name", "max_model_len": 4096}]})
        elif received.method == "GET":
            await wire.body(b"")
        else:
            async with asyncio.timeout(90):
                await everyone.wait()  # nobody is answered before all are here
            if received.json.get("stream"):
                await wire.events([{"choices": [{**choice, "delta": {"content": "Hello"}}]}, b"[DONE]"])
            else:
                await wire.json({"choices": [{**choice, "message": {"role": "assistant", "content": "Hello"}}]})

    provider = await start_provider(play)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FABRIC_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PROCESS, provider.url),
        env={**kept, "PYTHONPATH": str(ROOT), "FABRIC_DATA_DIR": str(tmp_path)},
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await process.communicate()
    assert (process.returncode, said.decode().strip()) == (0, str(IN_FLIGHT))
