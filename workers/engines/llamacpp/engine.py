"""The llama.cpp engine: one model file, one server process, many requests side by side."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import orjson

from fabric.contracts.catalog import Deployment
from fabric.contracts.errors import ConfigError, EngineError, FabricError, StreamBroken
from fabric.contracts.job import Endpoint, Usage
from fabric.fit.gguf import Header, read_model
from workers.engines.engine import Answer, Emit, Engine, EngineState, Request
from workers.engines.llamacpp.answer import Assembly, Wanted
from workers.engines.llamacpp.failures import failure
from workers.engines.llamacpp.machine import physical_cores
from workers.engines.llamacpp.options import Plan, model_path, parse_options, plan
from workers.engines.llamacpp.request import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    TEXT_PARAM,
    Abilities,
    Ask,
    generations,
    inputs,
)
from workers.engines.llamacpp.seats import Seats
from workers.engines.llamacpp.server import Server
from workers.engines.shelf import Place, Shelf
from workers.engines.sse import EventParser

log = logging.getLogger(__name__)

#: Bytes of one event: twenty log probabilities a token are a few thousand.
_EVENT_LIMIT = 16 * 1024 * 1024
#: Answers that are expected to be there in this time are asked for whole, the others as a stream, even
#: where the caller wants them whole. llama.cpp notices that the caller of a stream has hung up at its next
#: token. The caller of a whole answer it misses in a second in which no other request got a token or an
#: answer; on a busy server that may be never, and the answer is computed to its end. But a stream costs it
#: 0.1 ms a token and more the more of them there are: nothing for a large model, half the speed of a tiny one.
_SHORT_S = 10.0
#: Shorter prompts are read in one step or two.
_LONG_PROMPT_BYTES = 1_024
#: What a model is tried with before it gets jobs.
_TRIAL = {"prompt": "Once upon a time, there was", "max_tokens": 4, "ignore_eos": True, "cache_prompt": False}
#: Texts that are embedded together, and characters or tokens that they may have together.
_GROUP_TEXTS, _GROUP_LENGTH = 32, 4_096
#: The weight of the newest measurement of the speed.
_NEWEST = 0.2


class LlamaCppEngine(Engine):
    """Runs ``deployment.model``, a GGUF file. It is loaded at the start or when it is asked for, as ``shelf`` has
    room for it beside the worker's other models."""

    def __init__(self, deployment: Deployment, shelf: Shelf | None = None) -> None:
        """
        Raises:
            ConfigError: an option is unknown or wrong.
        """
        super().__init__(deployment)
        self._options = parse_options(deployment)
        self._shelf = shelf or Shelf()
        self._place: Place | None = None
        self._ready = False
        self._plan: Plan
        self._able: Abilities
        self._seats: Seats
        self._writer: Server | None = None
        self._embedder: Server | None = None
        self._embedding = asyncio.Lock()  # held by whoever uses the embedder
        self._pace = Pace()

    @property
    def slots(self) -> int:
        """Also while the model isn't loaded but could be: otherwise nothing would come for which to load it."""
        return self._plan.slots if self.state != "away" else 0

    @property
    def prompts_block(self) -> bool:
        return True

    @property
    def context(self) -> int | None:
        return self._plan.context if self._ready else None

    @property
    def state(self) -> EngineState:
        if not self._ready or self._place is None or self._place.failed:
            return "away"
        if self._place.state == "loaded" and not self._up:
            return "away"  # it has crashed, and is started again
        return self._place.state

    @property
    def _up(self) -> bool:
        server = self._embedder if self._plan.params is None else self._writer
        return server is not None and server.up

    async def start(self) -> None:
        if not self.deployment.model:
            raise ConfigError(f"Deployment {self.deployment.name!r}: set `model` to a GGUF file.")
        header = await asyncio.to_thread(read_model, model_path(self.deployment))
        memory = self._shelf.memory
        self._plan = plan(self.deployment, self._options, header, cores=physical_cores(), memory=memory)
        self._seats = Seats(self._plan.slots)
        self._able = Abilities(
            capabilities=frozenset(self.deployment.capabilities),
            slots=self._plan.slots,
            context=self._plan.context,
            vocabulary=header.vocabulary,
            tools=False,
        )
        self._place = self._shelf.place(
            self.deployment.name, self._plan.need, partial(self._load, header), self._put_away
        )
        try:
            await self._shelf.warm(self._place)
        except BaseException:
            await self.close()
            raise
        self._ready = True

    async def _load(self, header: Header) -> None:
        try:
            if self._plan.params is None:
                await self._running_embedder()
            else:
                self._writer = await self._started(self._plan.params)
                self._able = replace(self._able, tools=await _has_tools(self._writer))
                await self._check(self._writer)
        except BaseException:
            await self._put_away()
            raise
        log.info(
            "deployment %s: %s (%s, %s), %d slots of %d tokens",
            *(self.deployment.name, self.deployment.model, header.architecture, header.quantisation),
            *(self._plan.slots, self._plan.context),
        )

    async def close(self) -> None:
        self._ready = False
        if self._place is not None:
            await self._shelf.remove(self._place)

    async def _put_away(self) -> None:
        for server in (self._writer, self._embedder):
            if server is not None:
                await server.close()
        self._writer = self._embedder = None

    async def run(self, request: Request, emit: Emit) -> Answer:
        """The time that its model takes to be loaded is none of the request's."""
        assert self._place is not None, "run before start"
        async with self._place.used():
            began = time.perf_counter()
            answer = await self._run(request, emit)
            return replace(answer, engine_s=time.perf_counter() - began)

    async def _run(self, request: Request, emit: Emit) -> Answer:
        if request.endpoint == EMBEDDINGS:
            return await self._embed(request)
        started = time.perf_counter()
        asks = generations(request.endpoint, request.body, self._able, stream=request.stream)
        assembly = Assembly(Wanted.of(request.endpoint, request.body, stream=request.stream), emit)
        clock = _Clock(started)
        try:
            if len(asks) == 1:
                await self._generate(asks[0], assembly, clock, request.stream)
            else:
                await _together([self._generate(ask, assembly, clock, request.stream) for ask in asks])
        except FabricError as error:
            if error.retry and assembly.emitted:
                raise StreamBroken("llama.cpp ended in the middle of the answer.") from error
            raise
        return Answer({} if request.stream else assembly.body(), assembly.usage, clock.first_s)

    async def _generate(self, ask: Ask, assembly: Assembly, clock: _Clock, stream: bool) -> None:
        body = orjson.dumps(ask.body)
        async with self._seats.taken(ask.n):
            # llama.cpp reports the use of a whole answer's first choice only.
            if stream or ask.n > 1 or not (ask.whole_only or self._is_short(ask, body)):
                await self._stream(ask, len(body), assembly, clock)
            else:
                await self._whole(ask, body, assembly, clock)

    async def _whole(self, ask: Ask, body: bytes, assembly: Assembly, clock: _Clock) -> None:
        response = await self._running.request(ask.target, body)
        if response.status != 200:
            raise failure(response.status, response.body, TEXT_PARAM[ask.target])
        answer = orjson.loads(response.body)
        assembly.whole(answer["choices"], ask.index)
        assembly.count(ask.prompt, answer["usage"])
        timings = answer["timings"]
        self._pace.learn(timings)
        clock.first_token(ago_s=timings["predicted_ms"] / 1000)

    async def _stream(self, ask: Ask, size: int, assembly: Assembly, clock: _Clock) -> None:
        extra: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
        if size > _LONG_PROMPT_BYTES:
            # Not passed on: it is what lets llama.cpp notice while it reads that nobody waits any more.
            extra["return_progress"] = True
        events = EventParser(_EVENT_LIMIT)
        done = False

        def feed(data: bytes) -> None:
            nonlocal done
            for event in events.feed(data):
                if event == b"[DONE]":
                    done = True
                else:
                    self._take(orjson.loads(event), ask, assembly, clock)

        response = await self._running.request(ask.target, orjson.dumps(ask.body | extra), feed)
        if response.status != 200:
            raise failure(response.status, response.body, TEXT_PARAM[ask.target])
        if not done:
            raise EngineError("llama.cpp ended the stream before the answer's end.")

    def _take(self, chunk: dict[str, Any] | None, ask: Ask, assembly: Assembly, clock: _Clock) -> None:
        """One event of a stream. ``None`` stands for a token that is a piece of a character."""
        if chunk is None or "prompt_progress" in chunk:
            return
        if "error" in chunk:
            raise failure(0, chunk, TEXT_PARAM[ask.target])
        if chunk["choices"]:
            assembly.chunk(chunk["choices"], ask.index)
            if clock.first_s is None and assembly.has_text:
                clock.first_token()
        if usage := chunk.get("usage"):
            assembly.count(ask.prompt, usage)
        if timings := chunk.get("timings"):
            # Without it, a pace that was slow once would keep all answers streamed, which keeps it slow.
            self._pace.learn(timings)

    async def _embed(self, request: Request) -> Answer:
        data: list[dict[str, Any]] = []
        tokens = 0
        # In small groups, so that a long list neither holds up the others nor goes on when it is called off.
        for group in _groups(inputs(request.body, self._able)):
            async with self._embedding:
                server = await self._running_embedder()
                response = await server.request(EMBEDDINGS, orjson.dumps({"input": group}))
            if response.status != 200:
                raise failure(response.status, response.body, TEXT_PARAM[EMBEDDINGS])
            answer = orjson.loads(response.body)
            for item in sorted(answer["data"], key=lambda item: int(item["index"])):
                data.append({"object": "embedding", "index": len(data), "embedding": item["embedding"]})
            tokens += answer["usage"]["prompt_tokens"]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return Answer({"object": "list", "data": data, "usage": usage}, Usage(input_tokens=tokens))

    async def _running_embedder(self) -> Server:
        """Started with the first text, where the deployment also writes: most never get one."""
        if self._embedder is None:
            assert self._plan.embedding_params is not None, "refused before"
            server = await self._started(self._plan.embedding_params)
            problem = (
                f"Deployment {self.deployment.name!r}: {self.deployment.model} gives no embeddings: "
                "set `options.pooling`, or leave `embeddings` out of `capabilities`."
            )
            try:
                await _try(server, EMBEDDINGS, {"input": "a"}, problem)
            except BaseException:
                await server.close()
                raise
            self._embedder = server
        return self._embedder

    async def _started(self, params: dict[str, Any]) -> Server:
        server = Server(self.deployment.name, params, self._options.start_timeout_s)
        await server.start()
        return server

    def _is_short(self, ask: Ask, body: bytes) -> bool:
        return (
            self._pace.expected_s(len(body), min(ask.max_tokens or self._able.context, self._able.context)) < _SHORT_S
        )

    async def _check(self, server: Server) -> None:
        """What can't be known before the model is loaded: tried before a job does."""
        able, who = self._able, f"Deployment {self.deployment.name!r}: {self.deployment.model}"
        if "tools" in able.capabilities and not able.tools:
            raise ConfigError(
                f"{who} has a chat template without a place for tools; leave `tools` out of `capabilities`, "
                "or set `options.chat_template` to one that has."
            )
        answer = await _try(server, COMPLETIONS, _TRIAL, f"{who} doesn't write: llama.cpp fails on a first try.")
        # One alone; side by side each may take as many times longer as there are slots.
        self._pace.start(answer["timings"], self._plan.slots)
        if {"json_schema", "chat"} <= able.capabilities:
            messages = [{"role": "user", "content": "{}"}]
            trial = {"messages": messages, "response_format": {"type": "json_object"}, "max_tokens": 1}
            problem = (
                f"{who} can't be held to a JSON schema by llama.cpp: its tokens don't match its chat template; "
                "leave `json_schema` out of `capabilities`."
            )
            await _try(server, CHAT, trial, problem)

    @property
    def _running(self) -> Server:
        assert self._writer is not None, "run before start or after close"
        return self._writer


async def _has_tools(server: Server) -> bool:
    """Whether the chat template has a place for tools and for calls of them, by llama.cpp's own judgement."""
    properties = orjson.loads((await server.request("/props")).body)
    template = properties.get("chat_template_caps") or {}
    return bool(template.get("supports_tools") and template.get("supports_tool_calls"))


async def _try(server: Server, target: Endpoint, body: dict[str, Any], problem: str) -> dict[str, Any]:
    """
    Raises:
        ConfigError: says ``problem``.
    """
    response = await server.request(target, orjson.dumps(body))
    if response.status != 200:
        raise ConfigError(problem)
    answer: dict[str, Any] = orjson.loads(response.body)
    return answer


def _groups(texts: list[str | list[int]]) -> Iterator[list[str | list[int]]]:
    """Texts that are embedded together: a few short ones, or a long one alone."""
    group: list[str | list[int]] = []
    size = 0
    for text in texts:
        if group and (len(group) == _GROUP_TEXTS or size + len(text) > _GROUP_LENGTH):
            yield group
            group, size = [], 0
        group.append(text)
        size += len(text)
    yield group


class Pace:
    """How fast answers come at present, from llama.cpp's own timings. Times in seconds."""

    def __init__(self) -> None:
        self._per_token = self._per_prompt_token = float("inf")

    def start(self, timings: dict[str, Any], slots: int) -> None:
        """From a first answer, while nothing else runs."""
        self._per_token = timings["predicted_per_token_ms"] / 1000 * slots
        self._per_prompt_token = timings["prompt_per_token_ms"] / 1000 * slots

    def learn(self, timings: dict[str, Any]) -> None:
        if timings["predicted_n"] > 1:
            self._per_token += _NEWEST * (timings["predicted_per_token_ms"] / 1000 - self._per_token)
        if timings["prompt_n"] > 1:
            self._per_prompt_token += _NEWEST * (timings["prompt_per_token_ms"] / 1000 - self._per_prompt_token)

    def expected_s(self, prompt_bytes: int, tokens: int) -> float:
        """Until an answer of ``tokens`` is complete, if the prompt's tokens are bytes."""
        return prompt_bytes * self._per_prompt_token + tokens * self._per_token


class _Clock:
    """When the first token of a job came."""

    def __init__(self, started: float) -> None:
        self.first_s: float | None = None
        self._started = started

    def first_token(self, ago_s: float = 0.0) -> None:
        came = max(0.0, time.perf_counter() - self._started - ago_s)
        self.first_s = came if self.first_s is None else min(came, self.first_s)


async def _together(parts: list[Coroutine[Any, Any, None]]) -> None:
    """All at once; the first error stops the others, and leaves when they have stopped."""
    try:
        async with asyncio.TaskGroup() as group:
            for part in parts:
                group.create_task(part)
    except ExceptionGroup as errors:
        raise _first(errors) from errors


def _first(errors: ExceptionGroup[Exception]) -> Exception:
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, ExceptionGroup) else error
