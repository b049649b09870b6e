"""The server process: how it starts, refuses to, dies, comes back, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from fabric.contracts.errors import ConfigError, EngineUnavailable, ModelFileError, StreamBroken
from fabric.settings.defaults import shipped_model
from workers.engines.engine import Request
from workers.engines.llamacpp import LlamaCppEngine
from workers.engines.llamacpp.server import Server

if TYPE_CHECKING:
    from conftest import Caller, Start

Make = Callable[..., LlamaCppEngine]
#: A generation that is still going on when something happens to it.
LONG: dict[str, Any] = {"prompt": "Once", "logit_bias": {"2": -100, "0": -100}}


def altered(folder: Path, old: bytes, new: bytes) -> str:
    """A copy of the shipped model with other bytes in its header."""
    data = shipped_model().read_bytes()
    assert old in data and len(old) == len(new)
    path = folder / "altered.gguf"
    path.write_bytes(data.replace(old, new))
    return str(path)


@pytest.fixture
def sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where servers make the folders of their sockets."""
    with tempfile.TemporaryDirectory(prefix="f-", dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def children() -> list[psutil.Process]:
    return [p for p in psutil.Process().children(recursive=True) if "child.py" in " ".join(p.cmdline())]


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("/nowhere/model.gguf", "doesn't exist"),
        ("/tmp", "is a directory"),
        (__file__, "isn't a GGUF file"),
        ("", "set `model`"),
    ],
    ids=["missing", "directory", "not GGUF", "none"],
)
async def test_a_wrong_file_is_named_before_anything_starts(unstarted: Make, model: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        await unstarted(model=model).start()


async def test_a_file_that_is_cut_short(unstarted: Make, tmp_path: Path) -> None:
    path = tmp_path / "short.gguf"
    path.write_bytes(shipped_model().read_bytes()[:-1000])
    with pytest.raises(ModelFileError, match=r"short\.gguf is cut short"):
        await unstarted(model=str(path)).start()


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (b"output_norm.weight", b"output_nurm.weight", "output_norm.weight"),
        (b"llama.block_count", b"llama.block_cuunt", "block_count"),
    ],
    ids=["tensor", "field"],
)
async def test_a_file_that_llama_cpp_refuses(
    unstarted: Make, tmp_path: Path, sockets: Path, old: bytes, new: bytes, says: str
) -> None:
    with pytest.raises(ModelFileError, match=rf"llama\.cpp refuses .*altered\.gguf: .*{says}"):
        await unstarted(model=altered(tmp_path, old, new)).start()
    assert not children() and not list(sockets.iterdir())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"chat_template": "{% for"}, "chat template"),
        ({"cache_type_v": "q4_0", "flash_attention": "off"}, "flash_attn"),
        ({"start_timeout_s": 0.001}, "took longer than"),
    ],
    ids=["template", "cache", "time"],
)
async def test_a_way_to_run_it_that_llama_cpp_refuses(
    unstarted: Make, sockets: Path, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        await unstarted(options=options).start()
    assert not children() and not list(sockets.iterdir())


async def test_a_server_that_is_killed_while_it_loads_may_work_later(tmp_path: Path) -> None:
    # Nobody ends writing this file, so that loading it never ends.
    os.mkfifo(tmp_path / "model.gguf")
    server = Server("tiny", {"model.path": str(tmp_path / "model.gguf")}, 60.0)
    starting = asyncio.create_task(server.start())
    while not children():
        await asyncio.sleep(0.01)
    children()[0].kill()
    with pytest.raises(EngineUnavailable, match="killed while it loaded"):
        await starting


async def test_a_killed_server_costs_what_it_held_and_comes_back(
    start: Start, caller: Callable[[LlamaCppEngine], Caller]
) -> None:
    async with start() as engine:
        first_token = asyncio.Event()
        streamed = asyncio.create_task(
            engine.run(Request("job_1", "/v1/completions", LONG, True), lambda _: first_token.set())
        )
        await first_token.wait()
        whole = asyncio.create_task(engine.run(Request("job_2", "/v1/completions", LONG, False), lambda _: None))
        await asyncio.sleep(0)
        pid = engine._running.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)  # it is in the middle of both
        await asyncio.sleep(0.05)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(StreamBroken):
            await streamed
        with pytest.raises(EngineUnavailable) as error:
            await whole
        assert error.value.info.retry and error.value.info.fall_back
        # Once its death has been noticed the next request waits for the new server.
        while engine._running.pid == pid:
            await asyncio.sleep(0.01)
        assert (await caller(engine).chat(temperature=0)).texts[0]
        assert engine._running.pid not in (None, pid)


async def test_it_comes_back_again_and_again(start: Start, caller: Callable[[LlamaCppEngine], Caller]) -> None:
    async with start() as engine:
        for _ in range(3):
            assert engine._running.pid is not None
            os.kill(engine._running.pid, signal.SIGKILL)
            while engine._running.pid is not None:
                await asyncio.sleep(0.01)
            assert (await caller(engine).complete(max_tokens=2)).texts
    assert not children()


async def test_closing_while_it_is_started_again(start: Start) -> None:
    async with start() as engine:
        assert engine._running.pid is not None
        os.kill(engine._running.pid, signal.SIGKILL)
        while engine._running.pid is not None:
            await asyncio.sleep(0.01)
    assert not children()


async def test_starting_and_closing_leaves_nothing(
    start: Start, caller: Callable[[LlamaCppEngine], Caller], sockets: Path
) -> None:
    def held() -> tuple[int, int]:
        return threading.active_count(), psutil.Process().num_fds()

    before = None
    for _ in range(4):
        async with start() as engine:
            assert len(children()) == 1
            await caller(engine).complete(max_tokens=1)
            await caller(engine).embed("a")
            assert len(children()) == 2
        assert not children() and not list(sockets.iterdir())
        before = before or held()  # what the first round has started for good is no leak
    assert held() == before


async def test_an_engine_that_only_embeds_has_one_server(start: Start, caller: Callable[..., Caller]) -> None:
    async with start(capabilities=["embeddings"]) as engine:
        assert len(children()) == 1
        assert (await caller(engine).embed("a")).answer.usage.input_tokens > 0


async def test_its_server_dies_with_the_worker() -> None:
    """Also with one that is killed, and so can't tell it."""
    code = f"""
import asyncio, sys
from fabric.contracts.catalog import Deployment
from workers.engines import build

async def main():
    engine = build(Deployment(name="tiny", engine="llamacpp", tier="cpu", model={str(shipped_model())!r}, slots=1))
    await engine.start()
    print(engine._running.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""
    worker = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert worker.stdout is not None
        line = await asyncio.to_thread(worker.stdout.readline)
        server = psutil.Process(int(line))
        folder = next(Path(c.laddr).parent for c in server.net_connections("unix") if str(c.laddr).endswith(".sock"))
    finally:
        worker.kill()
        worker.wait()
    await asyncio.to_thread(psutil.wait_procs, [server], timeout=60)
    assert not server.is_running()
    assert not folder.exists()


async def test_ctrl_c_is_for_the_worker_alone(start: Start) -> None:
    async with start() as engine:
        pid = engine._running.pid
        assert pid is not None and os.getpgid(pid) == pid != os.getpgid(0)


async def test_only_this_user_can_reach_it(start: Start, sockets: Path) -> None:
    async with start():
        folder = next(sockets.iterdir())
        assert folder.stat().st_mode & 0o077 == 0
        listening = children()[0].net_connections("inet")
        assert not listening


async def test_a_pace_that_was_slow_once_is_learned_anew_from_streams(start: Start) -> None:
    """Answers that are expected to take long are streamed: if only whole ones taught, that would never end."""
    async with start() as engine:
        slow = {"predicted_n": 100, "predicted_per_token_ms": 60_000, "prompt_n": 100, "prompt_per_token_ms": 60_000}
        for _ in range(50):
            engine._pace.learn(slow)
        before = engine._pace.expected_s(0, 10)
        asked = {"messages": [{"role": "user", "content": "What is a river?"}], "max_tokens": 8}
        for number in range(30):
            request = Request(f"job_{number}", "/v1/chat/completions", dict(asked), stream=True)
            await engine.run(request, lambda chunk: None)
        assert engine._pace.expected_s(0, 10) < before / 100
