"""What an operator may set, and what follows from it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from fabric.contracts.catalog import Deployment
from fabric.contracts.errors import ConfigError
from fabric.fit.gguf import Header, TensorInfo, read_model
from fabric.settings.defaults import shipped_model
from workers.engines.llamacpp import LlamaCppEngine
from workers.engines.llamacpp.machine import physical_cores
from workers.engines.llamacpp.options import Plan, parse_options, plan

if TYPE_CHECKING:
    from conftest import Caller, Start

GIB = 2**30
#: The shape of a model of eight billion parameters, as far as a plan looks at it.
LARGE = Header(
    3,
    {
        "general.architecture": "llama",
        "llama.context_length": 131_072,
        "llama.embedding_length": 4096,
        "llama.block_count": 32,
        "llama.attention.head_count": 32,
        "llama.attention.head_count_kv": 8,
        "tokenizer.chat_template": "{{ messages }}",
        "tokenizer.ggml.tokens": ("a",) * 128,
    },
    (TensorInfo("output.weight", (4096, 655_360), 1, 0, 5 * GIB),),
    0,
    5 * GIB,
)


def deployment(**overrides: Any) -> Deployment:
    fields = {"name": "d", "engine": "llamacpp", "tier": "cpu", "model": "m.gguf", "context_window": 8192}
    return Deployment.model_validate(fields | overrides)


def planned(header: Header = LARGE, *, cores: int = 8, memory: int = 64 * GIB, **overrides: Any) -> Plan:
    d = deployment(**overrides)
    return plan(d, parse_options(d), header, cores=cores, memory=memory)


def with_metadata(**changes: Any) -> Header:
    return dataclasses.replace(LARGE, metadata=LARGE.metadata | changes)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"thread": 4}, "no option `thread`; it has threads, "),
        ({"threads": 0}, "`threads`: Input should be greater"),
        ({"threads": "4"}, "`threads`: Input should be a valid integer"),
        ({"cache_type_k": "q3"}, "`cache_type_k`: Input should be 'f32'"),
        ({"mmap": 1}, "`mmap`"),
        ({"temperature": 3.0}, "`temperature`"),
        ({"start_timeout_s": 0}, "`start_timeout_s`"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], says: str, unstarted: Callable[..., LlamaCppEngine]) -> None:
    with pytest.raises(ConfigError, match=says) as error:
        unstarted(name="mine", options=options)
    assert "'mine'" in error.value.message


def test_every_slot_gets_the_whole_context_window() -> None:
    for window, each in ((8192, 8192), (1000, 1024), (16, 256)):
        params = planned(context_window=window, slots=3).params
        assert params is not None
        assert (params["n_parallel"], params["n_ctx"], params["kv_unified_per_slot"]) == (3, 3 * each, window)


def test_slots_follow_the_cores_and_the_memory() -> None:
    assert planned(cores=1).slots == 4
    assert planned(cores=3).slots == 6
    assert planned(cores=64).slots == 8
    # 8,192 tokens take 1 GiB each: 60 % of what the weights leave.
    assert planned(memory=16 * GIB).slots == 6
    assert planned(memory=9 * GIB).slots == 2
    assert planned(cores=64, slots=20).slots == 20
    assert planned(memory=15 * GIB, options={"cache_type_k": "q8_0", "cache_type_v": "q8_0"}).slots == 8
    # Where the need can't be told, the cores decide.
    assert planned(with_metadata(**{"llama.block_count": None}), memory=6 * GIB).slots == 8
    assert planned(with_metadata(**{"general.architecture": "unheard-of"}), memory=6 * GIB).slots == 8


def test_what_cannot_fit_is_refused_before_it_is_tried() -> None:
    with pytest.raises(ConfigError, match=r"needs 8\.1 GiB, 6\.0 GiB are free; set `slots: 5`, `context"):
        planned(slots=8, memory=6 * GIB)
    with pytest.raises(ConfigError, match=r"needs 9\.1 GiB"):  # the weights count when they aren't mapped
        planned(slots=4, memory=6 * GIB, options={"mmap": False})
    with pytest.raises(ConfigError, match="take a smaller model"):
        planned(memory=GIB // 16)
    with pytest.raises(ConfigError, match=r"needs 1\.\d GiB"):  # one text at a time
        planned(capabilities=["embeddings"], slots=8, memory=GIB)
    assert planned(capabilities=["embeddings"], slots=8, memory=2 * GIB).slots == 8
    assert planned(with_metadata(**{"general.architecture": "unheard-of"}), slots=8, memory=6 * GIB).slots == 8


def test_more_context_than_the_model_was_trained_with_is_cut_and_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert planned(with_metadata(**{"llama.context_length": 2048})).context == 2048
    assert "context_window 8192 is more than the 2048 tokens" in caplog.text
    caplog.clear()
    assert planned(with_metadata(**{"llama.context_length": None})).context == 8192
    assert not caplog.text


def test_threads_are_the_cores_unless_set_or_useless() -> None:
    def threads(header: Header = LARGE, **options: Any) -> Any:
        params = planned(header, options=options).params
        assert params is not None
        assert params["cpuparams.n_threads"] == params["cpuparams_batch.n_threads"]
        return params["cpuparams.n_threads"]

    assert threads() == 8
    assert threads(threads=3) == 3
    assert threads(dataclasses.replace(LARGE, file_size=4 * 2**20)) == 1
    assert threads(dataclasses.replace(LARGE, file_size=4 * 2**20), threads=2) == 2


def test_a_server_for_each_thing_that_the_deployment_does() -> None:
    both = planned(capabilities=["chat", "embeddings"])
    assert both.params is not None and "embedding" not in both.params
    assert both.embedding_params is not None and both.embedding_params["embedding"]
    assert both.embedding_params["n_parallel"] == 1
    assert planned(capabilities=["completions"]).embedding_params is None
    assert planned(capabilities=["embeddings"]).params is None


def test_how_token_embeddings_become_one() -> None:
    def pooling(header: Header, **options: Any) -> Any:
        params = planned(header, capabilities=["embeddings"], options=options).embedding_params
        assert params is not None
        return params.get("pooling_type")

    assert pooling(LARGE) == "mean"
    assert pooling(with_metadata(**{"llama.pooling_type": 2})) is None  # as the file says
    assert pooling(with_metadata(**{"llama.pooling_type": 0})) == "mean"
    assert pooling(with_metadata(**{"llama.pooling_type": 2}), pooling="last") == "last"


def test_an_embedding_may_be_as_long_as_its_buffers_allow() -> None:
    def batch(header: Header, **options: Any) -> Any:
        params = planned(header, capabilities=["embeddings"], options=options).embedding_params
        assert params is not None
        return params["n_ubatch"]

    assert batch(with_metadata(**{"llama.embedding_length": 256})) == 8192
    assert batch(with_metadata(**{"tokenizer.ggml.tokens": ("a",) * 131_072})) == 512
    assert batch(LARGE, batch_tokens=2000) == 2000


@pytest.mark.parametrize(
    ("header", "capabilities", "says"),
    [
        (with_metadata(**{"tokenizer.chat_template": None}), ["chat"], "has no chat template"),
        (with_metadata(**{"llama.attention.causal": False}), ["chat", "embeddings"], "only makes embeddings"),
        (LARGE, ["chat", "vision"], "doesn't read images"),
    ],
)
def test_a_model_that_cannot_do_what_it_should(header: Header, capabilities: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        planned(header, capabilities=capabilities)


def test_what_a_model_lacks_does_not_matter_where_it_is_not_needed() -> None:
    assert planned(with_metadata(**{"tokenizer.chat_template": None}), capabilities=["completions"]).params
    assert planned(with_metadata(**{"tokenizer.chat_template": None}), options={"chat_template": "chatml"}).params
    assert planned(with_metadata(**{"llama.attention.causal": False}), capabilities=["embeddings"]).embedding_params


def test_this_machine() -> None:
    assert 1 <= physical_cores() <= 4096


async def test_every_option_reaches_llama_cpp(start: Start, caller: Callable[[LlamaCppEngine], Caller]) -> None:
    options = {
        **{"threads": 1, "batch_tokens": 64, "cache_type_k": "q8_0", "cache_type_v": "q8_0", "flash_attention": "on"},
        **{"mmap": False, "mlock": False, "prompt_cache_mib": 1, "pooling": "last", "chat_template": "chatml"},
        **{"temperature": 0.0, "top_p": 0.5, "min_p": 0.0, "top_k": 1, "seed": 5, "start_timeout_s": 120.0},
    }
    header = read_model(shipped_model())
    assert header.chat_template
    async with start(options=options) as engine:
        settings = orjson.loads((await engine._running.request("/props")).body)["default_generation_settings"]
        sampling = settings["params"]
        assert settings["n_ctx"] == 1024
        assert [sampling[name] for name in ("temperature", "top_p", "min_p", "top_k", "seed")] == [0.0, 0.5, 0.0, 1, 5]
        asked = caller(engine)
        texts = {(await asked.chat("Tell me a story.", max_tokens=20)).texts[0] for _ in range(3)}
        assert len(texts) == 1  # greedy without being told by the request
        assert len((await asked.embed("a")).answer.body["data"][0]["embedding"]) == header.embedding_length


async def test_a_context_window_is_exact(start: Start, caller: Callable[[LlamaCppEngine], Caller]) -> None:
    async with start(context_window=100) as engine:
        asked = await caller(engine).complete([5] * 20, logit_bias={"2": -100, "0": -100})
        assert asked.answer.usage.total_tokens == 100
        assert asked.choices[0]["finish_reason"] == "length"
