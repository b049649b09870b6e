"""Cancelling ``run`` stops the generation in llama.cpp, also while others keep it busy."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from fabric.settings.defaults import shipped_model
from workers.engines.engine import Request
from workers.engines.llamacpp import LlamaCppEngine

if TYPE_CHECKING:
    from conftest import Caller, Start

pytestmark = pytest.mark.asyncio(loop_scope="module")

Processing = Callable[[LlamaCppEngine], Awaitable[int]]
#: Ends with the context window only, which takes a dozen seconds at least.
LONG: dict[str, Any] = {"prompt": "Once", "logit_bias": {"2": -100, "0": -100}}
CONTEXT = 16_384


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model, which from now on believes that it was trained with long texts."""
    data = shipped_model().read_bytes()
    field = b"llama.context_length" + struct.pack("<I", 4)
    at = data.index(field) + len(field)
    path = tmp_path_factory.mktemp("model") / "endless.gguf"
    path.write_bytes(data[:at] + struct.pack("<I", CONTEXT) + data[at + 4 :])
    return path


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(start: Start, endless: Path) -> AsyncIterator[LlamaCppEngine]:
    async with start(slots=2, model=str(endless), context_window=CONTEXT) as engine:
        yield engine


class Running:
    """A request on its way, and events of what came of it."""

    def __init__(self, engine: LlamaCppEngine, body: dict[str, Any], *, stream: bool = True) -> None:
        self.chunks = 0
        self.first = asyncio.Event()
        request = Request("job_1", "/v1/completions", body, stream)
        self.task = asyncio.create_task(engine.run(request, self._emit))

    def _emit(self, chunk: bytes) -> None:
        self.chunks += 1
        self.first.set()

    async def cancel(self) -> None:
        self.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self.task


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while not await true():
            await asyncio.sleep(0.01)


async def test_a_streamed_generation_stops(engine: LlamaCppEngine, processing: Processing) -> None:
    running = Running(engine, LONG)
    await running.first.wait()
    await running.cancel()
    seen = running.chunks
    assert seen < CONTEXT / 2
    await until(lambda: idle(engine, processing))
    assert running.chunks == seen


async def are_at_work(engine: LlamaCppEngine, slots: int) -> bool:
    response = await engine._running.request("/slots")
    return response.body.count(b'"is_processing":true') == slots


async def idle(engine: LlamaCppEngine, processing: Processing) -> bool:
    return await processing(engine) == 0


async def test_one_of_several_stops_and_the_others_go_on(engine: LlamaCppEngine, caller: Callable[..., Caller]) -> None:
    first, second = Running(engine, LONG), Running(engine, LONG | {"max_tokens": 300})
    await asyncio.gather(first.first.wait(), second.first.wait())
    await first.cancel()
    answer = await second.task
    assert answer.usage.output_tokens == 300


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_slot_is_free_for_the_next_when_cancel_returns(
    engine: LlamaCppEngine, caller: Callable[..., Caller], stream: bool
) -> None:
    """Both slots taken by generations that would go on: the next answer only comes if they were stopped."""
    for _ in range(3):
        taken = [Running(engine, LONG | {"seed": seed}, stream=stream) for seed in range(2)]
        await until(lambda: are_at_work(engine, 2))
        await asyncio.gather(*(running.cancel() for running in taken))
        asked = await caller(engine).complete("An apple is", max_tokens=3, logit_bias=LONG["logit_bias"])
        assert asked.answer.usage.output_tokens == 3


async def test_an_answer_that_llama_cpp_gives_whole_is_given_up_or_done_before_long(
    engine: LlamaCppEngine, caller: Callable[..., Caller], processing: Processing
) -> None:
    """Short enough to be asked for whole, which the engine has to know by now."""
    for _ in range(30):
        await caller(engine).complete("An apple is", max_tokens=8)
    running = Running(engine, LONG | {"max_tokens": 1500}, stream=False)
    await until(lambda: are_at_work(engine, 1))
    await running.cancel()
    await until(lambda: idle(engine, processing))


async def test_a_prompt_that_is_being_read_is_given_up(start: Start, endless: Path, processing: Processing) -> None:
    """Read in many small steps, while another stream keeps llama.cpp from noticing a lost caller by itself."""
    small_steps = {"batch_tokens": 32}
    async with start(slots=2, model=str(endless), context_window=CONTEXT, options=small_steps) as engine:
        other = Running(engine, LONG)
        await other.first.wait()
        running = Running(engine, {"prompt": [5 + i % 100 for i in range(15_000)], "max_tokens": 20})
        await until(lambda: are_at_work(engine, 2))
        await running.cancel()
        assert not running.first.is_set()
        await other.cancel()
        await until(lambda: idle(engine, processing))


async def test_what_waits_for_a_slot_never_reaches_llama_cpp(engine: LlamaCppEngine, processing: Processing) -> None:
    taken = [Running(engine, LONG), Running(engine, LONG)]
    await asyncio.gather(*(running.first.wait() for running in taken))
    waiting = [Running(engine, LONG) for _ in range(4)]
    await asyncio.sleep(0)
    for running in waiting:
        await running.cancel()
    for running in taken:
        await running.cancel()
    await until(lambda: idle(engine, processing))
    assert not any(running.chunks for running in waiting)


async def test_all_parts_of_a_request_stop(engine: LlamaCppEngine, processing: Processing) -> None:
    running = Running(engine, LONG | {"prompt": ["Once", "Twice", "Thrice"], "n": 3})
    await running.first.wait()
    await running.cancel()
    await until(lambda: idle(engine, processing))


async def test_a_long_list_of_embeddings_ends_with_the_group_in_hand(engine: LlamaCppEngine) -> None:
    texts = ["a few words to make a vector of"] * 2048
    task = asyncio.create_task(engine.run(Request("job_1", "/v1/embeddings", {"input": texts}, False), lambda _: None))
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    answer = await engine.run(Request("job_2", "/v1/embeddings", {"input": "a"}, False), lambda _: None)
    assert len(answer.body["data"]) == 1


async def test_an_emit_that_fails_stops_the_generation_too(engine: LlamaCppEngine, processing: Processing) -> None:
    def broken(_: bytes) -> None:
        raise RuntimeError("the outbox is gone")

    with pytest.raises(RuntimeError, match="the outbox is gone"):
        await engine.run(Request("job_1", "/v1/completions", LONG, True), broken)
    await until(lambda: idle(engine, processing))
