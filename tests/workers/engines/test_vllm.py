"""vLLM as a child that is watched, and as a server that runs already. The server is played by a real process."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from fabric.contracts.catalog import Deployment
from fabric.contracts.errors import ConfigError, EngineError, EngineUnavailable, FabricError, StreamBroken
from fabric.contracts.job import Usage
from workers.engines import build, vllm
from workers.engines.api_options import options_of
from workers.engines.vllm import VllmEngine
from workers.engines.vllm_options import VllmOptions, in_vllms_words, missing_for_tools, serve_command
from workers.engines.vllm_process import located

BODY = {"messages": [{"role": "user", "content": "Hi"}]}
FAKE = Path(__file__).with_name("fake_vllm.py")
BUSY = b"vllm:num_requests_running 4\nvllm:num_requests_waiting 30\nvllm:kv_cache_usage_perc 0.3\n"
IDLE = b"vllm:num_requests_running 4\nvllm:num_requests_waiting 0\nvllm:kv_cache_usage_perc 0.3\n"


def deployment(**more: Any) -> Deployment:
    return Deployment(**{"engine": "vllm", "tier": "gpu", "name": "big", "model": "org/name", **more})


class Play:
    """The folder through which a test and the played server speak."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def starts(self) -> list[dict[str, Any]]:
        file = self.folder / "starts.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def say(self, name: str, value: bytes) -> None:
        (self.folder / f".{name}").write_bytes(value)
        (self.folder / f".{name}").rename(self.folder / name)

    def deployment(self, **options: Any) -> Deployment:
        command = [sys.executable, str(FAKE)]
        return deployment(options={"command": command, "env": {"PLAY": str(self.folder)}, **options})


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    monkeypatch.setattr(vllm, "_LOOK_S", 0.05)
    monkeypatch.setattr(vllm, "_BACKOFF_S", 0.05)
    monkeypatch.setattr(vllm, "_BACKOFF_CAP_S", 0.1)
    return Play(tmp_path)


@pytest.fixture
async def engine(play: Play) -> AsyncIterator[VllmEngine]:
    engine = VllmEngine(play.deployment())
    await engine.start()
    yield engine
    await engine.close()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.01)


def alive(pids: list[int]) -> list[int]:
    living = []
    for pid in pids:
        try:
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                living.append(pid)
        except psutil.NoSuchProcess:
            pass
    return living


# Options.


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "--max-model-len 4096"),
        ({"args": ["--max-model-len=100", "--seed", "3"]}, "--max-model-len=100 --seed 3"),
        (
            {"args": {"max_model_len": 100, "gpu-memory-utilization": 0.9}},
            "--max-model-len 100 --gpu-memory-utilization 0.9",
        ),
        (
            {"args": {"enforce-eager": True, "enable-prefix-caching": False}},
            "--max-model-len 4096 --enforce-eager --no-enable-prefix-caching",
        ),
        ({"args": {"--lora-modules": ["a=x", "b=y"]}}, "--max-model-len 4096 --lora-modules a=x b=y"),
    ],
)
def test_the_command_that_serves(options: dict[str, Any], words: str) -> None:
    own = "vllm serve org/name --host 127.0.0.1 --port 8001 --served-model-name org/name"
    assert command_of(deployment(options=options)) == f"{own} {words}".split()


def test_vllm_is_found_in_the_workers_own_environment_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, path, named = (tmp_path / name for name in ("own", "path", "named"))
    for folder in (own, path, named):
        folder.mkdir()
    monkeypatch.setenv("PATH", str(path))
    assert located(["vllm", "serve"], own) == ["vllm", "serve"], "the shell says that there is none"
    for folder in (path, own, named):
        (folder / "vllm").touch(mode=0o755)
    assert located(["vllm", "serve"], own) == [str(own / "vllm"), "serve"]
    assert located([str(named / "vllm"), "serve"], own) == [str(named / "vllm"), "serve"]
    (own / "vllm").unlink()
    assert located(["vllm", "serve"], own) in (["vllm", "serve"], [str(path / "vllm"), "serve"])


def test_the_extra_for_gpus_is_bound_by_nothing_in_the_lock() -> None:
    root = Path(__file__).parents[3]
    project = tomllib.loads((root / "pyproject.toml").read_text())
    assert [word for word in project["project"]["optional-dependencies"]["gpu"] if word.startswith("vllm")]
    locked = {package["name"] for package in tomllib.loads((root / "uv.lock").read_text())["package"]}
    assert "fastapi" in locked
    assert not locked & {"vllm", "torch", "transformers"}


def test_slots_bound_the_batch() -> None:
    assert command_of(deployment(slots=9))[-2:] == ["--max-num-seqs", "9"]
    assert command_of(deployment(slots=9, options={"args": {"max-num-seqs": 5}}))[-2:] == ["--max-num-seqs", "5"]


def test_requests_are_not_logged_unless_asked_for() -> None:
    switch = "disable-uvicorn-access-log"
    for args, expected in (({}, f"--{switch}"), ({switch: False}, f"--no-{switch}")):
        given = deployment(options={"args": args})
        words = serve_command(given, options_of(given, VllmOptions), 8001)
        assert [word for word in words if switch in word] == [expected]


def command_of(given: Deployment) -> list[str]:
    """Without what every command has at its end."""
    words = serve_command(given, options_of(given, VllmOptions), 8001)
    return [word for word in words if word != "--disable-uvicorn-access-log"]


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"model": ""}, "`model` is missing"),
        ({"options": {"argz": []}}, "unknown option `options.argz`"),
        ({"options": {"args": {"port": 1}}}, "`port` is written by the fabric"),
        ({"options": {"args": ["--api_key=sk-1"]}}, "`api-key` is written by the fabric"),
        ({"options": {"args": ["--enable-log-requests"]}}, "would write prompts to the log"),
        ({"options": {"command": []}}, "`options.command` is wrong"),
        ({"base_url": "http://localhost:1", "options": {"args": ["--seed", "1"]}}, "`options.args` does nothing"),
        ({"api_key_env": "KEY"}, "one started here gets its own"),
        ({"base_url": "localhost:8000"}, "`base_url`"),
    ],
)
async def test_what_would_do_nothing_is_refused(more: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        engine = VllmEngine(deployment(**more))
        await engine.start()
    assert named in str(caught.value)
    assert "sk-1" not in str(caught.value)


@pytest.mark.parametrize(
    ("capabilities", "more", "missing"),
    [
        (["chat"], {}, None),
        (["chat", "tools"], {}, "`enable-auto-tool-choice` and `tool-call-parser`"),
        (["chat", "tools"], {"options": {"args": ["--enable-auto-tool-choice"]}}, "set `tool-call-parser` in"),
        (["tools"], {"options": {"args": {"enable_auto_tool_choice": True, "tool-call-parser": "hermes"}}}, None),
        (["tools"], {"options": {"args": {"config": "/vllm.yaml"}}}, None),  # it may be there
        (["tools"], {"base_url": "http://localhost:8000"}, None),  # whoever runs it knows
    ],
)
def test_tools_need_arguments(capabilities: list[str], more: dict[str, Any], missing: str | None) -> None:
    place = deployment(capabilities=capabilities, **more)
    said = missing_for_tools(place, options_of(place, VllmOptions))
    assert said is None if missing is None else said is not None and missing in said


def test_a_grammar_in_vllms_words() -> None:
    body = {"messages": [], "response_format": {"type": "grammar", "grammar": "root ::= [0-9]"}}
    assert in_vllms_words(body) == {"messages": [], "structured_outputs": {"grammar": "root ::= [0-9]"}}
    for other in ({"messages": []}, {"response_format": {"type": "json_object"}}, {"response_format": None}):
        assert in_vllms_words(other) == other


def test_build_knows_the_engine() -> None:
    engine = build(deployment())
    assert isinstance(engine, VllmEngine)
    assert engine.slots == 0  # not started


# A server of our own.


async def test_a_started_server_answers(engine: VllmEngine, play: Play, run: Any) -> None:
    answer = await run(engine)(BODY)

    assert answer.body["choices"][0]["message"] == {"role": "assistant", "content": "Hello"}
    assert answer.usage == Usage(input_tokens=3, output_tokens=1)
    assert engine.slots == 512
    (start,) = play.starts
    assert start["argv"][:2] == ["serve", "org/name"]


async def test_what_the_server_inherits(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FABRIC_REDIS_URL", "redis://:secret@x/0")
    monkeypatch.setenv("HF_HOME", "/models")
    engine = VllmEngine(play.deployment())
    await engine.start()
    await engine.close()

    environ = play.starts[0]["environ"]
    assert not [name for name in environ if name.startswith("FABRIC_")]
    assert environ["HF_HOME"] == "/models"
    assert environ["VLLM_NO_USAGE_STATS"] == "1"
    assert len(environ["VLLM_API_KEY"]) >= 40


async def test_a_server_that_dies_is_started_again(engine: VllmEngine, play: Play, run: Any) -> None:
    os.kill(play.starts[0]["pids"][0], signal.SIGKILL)
    await until(lambda: engine.slots == 0)
    with pytest.raises(EngineUnavailable):
        await run(engine)(BODY)

    await until(lambda: engine.slots > 0)
    assert (await run(engine)(BODY)).body
    assert len(play.starts) == 2
    await until(lambda: not alive(play.starts[0]["pids"]))  # its engine process went with it


async def test_a_stream_whose_server_dies_is_broken(engine: VllmEngine, play: Play, run: Any) -> None:
    streamed = run(engine)
    task = asyncio.create_task(streamed(BODY, stream=True))
    await asyncio.wait_for(streamed.first.wait(), 60)
    os.kill(play.starts[0]["pids"][0], signal.SIGKILL)
    with pytest.raises(StreamBroken) as caught:
        await task
    assert caught.value.fault == "engine"


async def test_a_server_that_hangs_is_started_again(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "_LOOK_TIMEOUT_S", 1.0)
    monkeypatch.setattr(vllm, "_HUNG_S", 1.0)
    engine = VllmEngine(play.deployment(stop_timeout_s=0.1))
    await engine.start()
    os.kill(play.starts[0]["pids"][0], signal.SIGSTOP)
    await until(lambda: len(play.starts) >= 2 and engine.slots > 0)
    await until(lambda: not alive(play.starts[0]["pids"]))
    await engine.close()


@pytest.mark.parametrize(
    ("status", "expected", "named"),
    [
        (b"1", EngineUnavailable, "ended with status 1 before it was up. It says: what is in its output above"),
        (b"2", ConfigError, "check `options.args`"),
    ],
)
async def test_a_server_that_ends_before_it_is_up(
    play: Play, status: bytes, expected: type[FabricError], named: str
) -> None:
    play.say("exit", status)
    with pytest.raises(expected, match=named):
        await VllmEngine(play.deployment()).start()
    assert len(play.starts) == 1
    await until(lambda: not alive(play.starts[0]["pids"]))


async def test_why_a_server_ended_is_told_where_its_end_is(play: Play, capfd: pytest.CaptureFixture[str]) -> None:
    traceback = b"Traceback (most recent call last):\nValueError: no weights in org/name.\n"
    play.say("words", traceback + b"RuntimeError: failed. See root cause above.\n")
    play.say("exit", b"1")
    with pytest.raises(EngineUnavailable) as caught:
        await VllmEngine(play.deployment()).start()
    assert caught.value.message.endswith("before it was up. It says: ValueError: no weights in org/name.")
    assert "Traceback (most recent call last):" in capfd.readouterr().err  # all of it, for who wants to know more


async def test_a_server_that_dies_while_it_loads_again_is_tried_on(
    engine: VllmEngine, play: Play, caplog: pytest.LogCaptureFixture
) -> None:
    play.say("words", b"torch.cuda.OutOfMemoryError: CUDA out of memory.\n")
    play.say("exit", b"1")
    os.kill(play.starts[0]["pids"][0], signal.SIGKILL)
    await until(lambda: len(play.starts) >= 3)
    assert engine.slots == 0
    assert engine.state in ("loading", "away")
    assert "isn't up again: OutOfMemoryError: CUDA out of memory" in caplog.text
    (play.folder / "exit").unlink()
    await until(lambda: engine.slots > 0)
    assert engine.state == "loaded"


async def test_one_that_is_being_loaded_is_not_called_away(play: Play) -> None:
    play.say("silent", b"")
    engine = VllmEngine(play.deployment())
    starting = asyncio.create_task(engine.start())
    await until(lambda: engine.state == "loading")
    assert engine.slots == 0
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    await engine.close()
    assert engine.state == "away"


async def test_a_command_that_is_not_there(play: Play) -> None:
    with pytest.raises(ConfigError, match="no command '/nowhere/vllm' here"):
        await VllmEngine(play.deployment(command=["/nowhere/vllm"])).start()


async def test_a_server_that_is_never_up(play: Play) -> None:
    play.say("silent", b"")
    with pytest.raises(EngineUnavailable, match="start_timeout_s"):
        await VllmEngine(play.deployment(start_timeout_s=1)).start()
    await until(lambda: not alive([pid for start in play.starts for pid in start["pids"]]))


async def test_closing_leaves_nothing_behind(play: Play) -> None:
    engine = VllmEngine(play.deployment())
    await engine.start()
    pids = play.starts[0]["pids"]
    assert len(alive(pids)) == 2
    await engine.close()
    await until(lambda: not alive(pids))
    assert engine.slots == 0


async def test_a_worker_that_is_killed_leaves_nothing_behind(play: Play) -> None:
    code = (
        "import asyncio\n"
        "from fabric.contracts.catalog import Deployment\n"
        "from workers.engines.vllm import VllmEngine\n"
        "async def main():\n"
        f"    engine = VllmEngine(Deployment.model_validate_json({play.deployment().model_dump_json()!r}))\n"
        "    await engine.start()\n"
        "    print('up', flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as worker:
        assert worker.stdout
        assert await asyncio.to_thread(worker.stdout.readline) == b"up\n"
        pids = play.starts[0]["pids"]
        assert len(alive(pids)) == 2
        worker.kill()
    await until(lambda: not alive(pids))


async def test_slots_follow_the_load(engine: VllmEngine, play: Play) -> None:
    assert engine.slots == 512
    play.say("metrics", BUSY)
    await until(lambda: engine.slots == 5)
    play.say("metrics", IDLE)
    await until(lambda: engine.slots == 512)


async def test_slots_follow_the_time_to_the_first_token(engine: VllmEngine, play: Play) -> None:
    name = b"vllm:time_to_first_token_seconds"
    for count in range(1, 1_000):  # one more each time, and each of them late
        play.say("metrics", IDLE + name + b"_count %d\n" % count + name + b"_sum %d\n" % (count * 60))
        await asyncio.sleep(0.02)
        if engine.slots == 64:
            break
    assert engine.slots == 64  # an eighth
    play.say("metrics", IDLE)
    await until(lambda: engine.slots == 512)


# A server that runs already.


def server(*, window: int = 8192, served: str = "org/name", key: str | None = None) -> Any:
    async def play(received: Any, wire: Any) -> None:
        if received.path == "/v1/models" and key and received.headers.get("authorization") != f"Bearer {key}":
            await wire.json({"error": "Unauthorized"}, 401)
        elif received.path == "/v1/models":
            await wire.json({"data": [{"id": served, "max_model_len": window}]})
        elif received.path == "/health":
            await wire.body(b"")
        elif received.path == "/metrics":
            await wire.body(IDLE, "text/plain")
        else:
            said = {"role": "assistant", "content": "Hello"}
            await wire.json({"choices": [{"index": 0, "message": said, "finish_reason": "stop"}]})

    return play


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
async def test_attaching(
    start_provider: Callable[..., Awaitable[Any]], play: Play, run: Any, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPU_KEY", "gpu-4711")
    provider = await start_provider(server(key="gpu-4711"))
    url = provider.url.removesuffix("/v1") + suffix
    engine = VllmEngine(deployment(base_url=url, api_key_env="GPU_KEY"))
    await engine.start()
    assert engine.context == 8192  # what the server has, not what the deployment says
    await run(engine)({"prompt": "x"}, endpoint="/v1/completions")
    await engine.close()
    assert engine.context is None
    asked = next(r for r in provider.received if r.method == "POST")
    assert asked.path == "/v1/completions"
    assert asked.headers["authorization"] == "Bearer gpu-4711"


@pytest.mark.parametrize(
    ("server_", "named"),
    [
        (server(served="org/other"), "serves org/other, not org/name"),
        (server(window=2048), "set `context_window: 2048`"),
        (server(key="gpu-1"), "refuses its key"),
    ],
)
async def test_a_server_that_is_not_what_the_deployment_says(
    start_provider: Callable[..., Awaitable[Any]], play: Play, server_: Any, named: str
) -> None:
    provider = await start_provider(server_)
    with pytest.raises(ConfigError) as caught:
        await VllmEngine(deployment(base_url=provider.url)).start()
    assert named in str(caught.value)


async def test_a_server_that_never_comes(play: Play, unused_tcp_port: int) -> None:
    engine = VllmEngine(deployment(base_url=f"http://127.0.0.1:{unused_tcp_port}", options={"start_timeout_s": 0.2}))
    with pytest.raises(EngineUnavailable, match="start_timeout_s"):
        await engine.start()


async def test_a_server_that_goes_and_comes_back(
    start_provider: Callable[..., Awaitable[Any]], play: Play, run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    provider = await start_provider(server())
    engine = VllmEngine(deployment(base_url=provider.url))
    await engine.start()
    await until(lambda: engine.slots == 512)

    async def ill(received: Any, wire: Any) -> None:
        wire.cut()

    well, provider.play = provider.play, ill
    await until(lambda: engine.slots == 0)
    with pytest.raises(EngineUnavailable):
        await run(engine)(BODY)
    assert "is gone from" in caplog.text

    provider.play = well
    await until(lambda: engine.slots == 512)
    await run(engine)(BODY)
    await engine.close()


async def test_a_server_that_comes_back_as_another_is_not_used(
    start_provider: Callable[..., Awaitable[Any]], play: Play, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    provider = await start_provider(server())
    engine = VllmEngine(deployment(base_url=provider.url))
    await engine.start()

    async def ill(received: Any, wire: Any) -> None:
        wire.cut()

    provider.play = ill
    await until(lambda: engine.slots == 0)
    provider.play = server(served="org/other")
    await until(lambda: "serves org/other" in caplog.text)
    assert engine.slots == 0
    provider.play = server()
    await until(lambda: engine.slots == 512)
    await engine.close()


async def test_failures_are_the_engines_and_not_a_providers(
    start_provider: Callable[..., Awaitable[Any]], play: Play, run: Any
) -> None:
    provider = await start_provider(server())
    engine = VllmEngine(deployment(base_url=provider.url))
    await engine.start()

    async def ill(received: Any, wire: Any) -> None:
        await wire.json({"error": {"message": "EngineCore died", "code": 500}}, 500)

    provider.play = ill
    with pytest.raises(EngineError) as caught:
        await run(engine)(BODY)
    assert caught.value.info.fault == "engine"
    assert caught.value.retry
    await engine.close()
