"""A whole fabric whose `gpu` worker starts a real vLLM, on the CPU. ``scripts/get-vllm-cpu`` makes it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

if TYPE_CHECKING:
    from tests.e2e.conftest import Fabric

FOLDER = Path(os.environ.get("VLLM_CPU_HOME") or Path.home() / ".cache/inference-fabric/vllm-cpu")
#: A second core may be busy with other things.
START_S = 400.0
CONFIG = f"""
models:
  - name: assistant
    deployments:
      - engine: vllm
        tier: gpu
        name: big
        model: {FOLDER / "model"}
        context_window: 2048
        capabilities: [chat, completions, json_schema, logprobs]
        options:
          command: [nice, -n, "10", {FOLDER / "bin" / "vllm"}]
          args: {{enforce-eager: true, dtype: float32, max-num-seqs: 16}}
          env: {{HF_HUB_OFFLINE: "1", VLLM_CPU_KVCACHE_SPACE: "1"}}
"""
ASKED: dict[str, Any] = {
    "model": "assistant",
    "messages": [{"role": "user", "content": "Where is the job?"}],
    "max_tokens": 12,
    "temperature": 0,
}

pytestmark = [
    pytest.mark.skipif(
        not (FOLDER / "made").exists(), reason=f"no vLLM in {FOLDER}: ./scripts/get-vllm-cpu makes it, or says why not"
    ),
    pytest.mark.timeout(3 * START_S),
]


@pytest.fixture(scope="module")
def fabric() -> Iterator[Fabric]:
    from tests.e2e.conftest import new_fabric

    for fabric in new_fabric():
        yield fabric.start(CONFIG)


def place(fabric: Fabric) -> dict[str, Any]:
    """The deployment as ``GET /v1/tiers`` shows it."""
    with fabric.http() as http:
        tiers = http.get("/v1/tiers").json()["data"]
    [found] = [place for tier in tiers for place in tier["deployments"] if place["name"] == "big"]
    assert isinstance(found, dict)
    return found


def until_up(fabric: Fabric) -> None:
    from tests.e2e.conftest import until

    until(lambda: place(fabric)["slots"] > 0, within_s=START_S, hint=f"for vLLM to be up:\n{fabric.log()[-3000:]}")


def servers(fabric: Fabric) -> list[psutil.Process]:
    """vLLM's processes, the server first."""
    pid = fabric.pid("worker-gpu")
    assert pid is not None
    below = psutil.Process(pid).children(recursive=True)
    return [
        process
        for process in below
        if str(FOLDER / "bin") in " ".join(process.cmdline()) and "-S" not in process.cmdline()
    ]


def test_people_are_answered_by_it_whole_and_streamed(fabric: Fabric) -> None:
    until_up(fabric)
    with fabric.openai() as client:
        raw = client.chat.completions.with_raw_response.create(**ASKED)
        whole = raw.parse()
        asked = {**ASKED, "stream": True, "stream_options": {"include_usage": True}}
        chunks = list(client.chat.completions.create(**asked))
    assert (raw.headers["x-fabric-tier"], raw.headers["x-fabric-deployment"]) == ("gpu", "big")
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content != ""
    assert whole.usage and chunks[-1].usage and whole.usage.completion_tokens == 12
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens > 0
    assert chunks[-1].usage.completion_tokens == 12


def test_it_passes_every_check(fabric: Fabric) -> None:
    until_up(fabric)
    done = fabric.command("verify", "big", "--json", timeout=300)
    checks = {check["name"]: check["state"] for check in json.loads(done.stdout)["checks"]}
    assert checks == dict.fromkeys(checks, "passed") and len(checks) == 8, done.stdout
    assert done.returncode == 0


def test_a_job_waits_for_a_server_that_was_killed(fabric: Fabric) -> None:
    from tests.e2e.conftest import until

    until_up(fabric)
    killed = servers(fabric)
    os.kill(killed[0].pid, signal.SIGKILL)
    until(lambda: place(fabric)["slots"] == 0, within_s=60)
    assert set(place(fabric)["states"]) <= {"away", "loading"}
    with fabric.openai() as client:
        answer = client.with_options(timeout=START_S).chat.completions.create(**ASKED)
    assert answer.usage is not None and answer.usage.completion_tokens == 12
    until(lambda: not any(process.is_running() for process in killed), within_s=30)


def test_nothing_of_it_is_left_behind(fabric: Fabric) -> None:
    from tests.e2e.conftest import until

    until_up(fabric)
    processes = servers(fabric)
    assert processes
    assert fabric.stop() == 0, fabric.log()[-3000:]
    until(lambda: not any(process.is_running() for process in processes), within_s=30)
