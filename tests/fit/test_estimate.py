"""The arithmetic: parts add up, more never needs less, and the limits that are named are the limits."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.contracts.errors import ConfigError
from fabric.fit import Ask, LlamaCpp, Shape, Vllm, estimate, longest, most_parallel
from fabric.fit.estimate import kv_per_token
from fabric.fit.need import Engine, Need
from fabric.fit.shape import Attention, Latent, Layer, Recurrent, Weights

GIB = 2**30

heads = st.sampled_from([1, 2, 4, 8, 16])
lengths = st.sampled_from([32, 64, 128, 256])
layers: st.SearchStrategy[Layer] = st.one_of(
    st.builds(Attention, heads, heads, lengths, lengths, st.none() | st.integers(1, 10_000)),
    st.builds(Latent, heads, st.sampled_from([256, 512]), st.sampled_from([32, 64])),
    st.builds(Recurrent, st.integers(0, 50_000), st.integers(0, 500_000), st.integers(0, 50_000)),
)
shapes = st.builds(
    Shape,
    architecture=st.just("any"),
    layers=st.lists(layers, max_size=6).map(tuple),
    width=st.integers(32, 8192),
    inner=st.integers(0, 32_768),
    vocabulary=st.integers(1, 200_000),
    weights=st.integers(1, 2**36).flatmap(
        lambda total: st.builds(Weights, st.just(total), st.integers(0, total), st.integers(0, total))
    ),
)
engines: st.SearchStrategy[Engine] = st.one_of(
    st.builds(
        LlamaCpp,
        shapes,
        batch=st.sampled_from([32, 512, 2048]),
        mmap=st.booleans(),
        mlock=st.booleans(),
        repack=st.booleans(),
        flash_attention=st.booleans(),
        checkpoints=st.integers(0, 32),
    ),
    st.builds(Vllm, shapes, st.sampled_from([512, 2048, 8192])),
)
asks = st.builds(Ask, st.integers(1, 200_000), st.integers(1, 256))


def usual(engine: Engine, ask: Ask) -> Ask:
    kind = "auto" if isinstance(engine, Vllm) else "f16"
    return replace(ask, key_type=kind, value_type=kind)


def parts(need: Need) -> tuple[int, ...]:
    return (need.weights, need.kv, need.checkpoints, need.buffers, need.copies, need.runtime)


@given(engines, asks)
def test_the_need_is_the_sum_of_its_parts(engine: Engine, ask: Ask) -> None:
    need = engine.need(usual(engine, ask))
    assert need.total == sum(parts(need)) == need.weights + need.kv + need.overhead
    assert min(parts(need)) >= 0


@given(engines, asks, st.integers(1, 200_000), st.integers(1, 100))
def test_more_never_needs_less(engine: Engine, ask: Ask, tokens: int, requests: int) -> None:
    ask = usual(engine, ask)
    need = engine.need(ask)
    for more in (replace(ask, context=ask.context + tokens), replace(ask, parallel=ask.parallel + requests)):
        assert all(a <= b for a, b in zip(parts(need), parts(engine.need(more)), strict=True))


@given(engines, asks, st.integers(0, 2**37), st.none() | st.integers(1, 300_000))
def test_the_limits_are_the_limits(engine: Engine, ask: Ask, have: int, trained: int | None) -> None:
    ask = usual(engine, ask)
    found = estimate(engine, ask, have, trained)

    def fits(**changed: int) -> bool:
        return engine.need(replace(ask, **changed)).total <= have

    assert found.fits == fits()
    assert found.max_context == 0 or fits(context=found.max_context)
    assert found.max_context == (trained or 2**20) or not fits(context=found.max_context + 1)
    assert found.max_parallel == 0 or fits(parallel=found.max_parallel)
    assert found.max_parallel == engine.most_parallel or not fits(parallel=found.max_parallel + 1)
    assert found.advice
    values = found.asdict()
    assert values["need_bytes"] == values["weights_bytes"] + values["kv_bytes"] + values["overhead_bytes"]


@given(engines, asks, st.integers(0, 2**37))
def test_each_change_that_is_advised_makes_it_fit(engine: Engine, ask: Ask, have: int) -> None:
    ask = usual(engine, ask)
    found = estimate(engine, ask, have)
    if found.fits:
        assert found.advice.startswith("It fits")
        return
    assert found.advice.startswith("It doesn't fit")
    words = found.advice.replace(",", " ").replace(".", " ").replace(";", " ").split()
    changes = dict(pairwise(words))
    changed = [
        replace(ask, **{name: int(changes[f"--{name}"])}) for name in ("context", "parallel") if f"--{name}" in changes
    ]
    if kind := changes.get("--kv-type"):
        changed.append(replace(ask, key_type=kind, value_type=kind))
    if "together" in words:
        changed = [replace(changed[0], parallel=1)]
    if "any setting" in found.advice:
        changed = []
        assert engine.need(replace(ask, context=1, parallel=1)).total > have
    else:
        assert changed
    assert all(engine.need(one).total <= have for one in changed)


def grouped(layers: int, *, heads: int, kv_heads: int, head: int = 128) -> Shape:
    return Shape("llama", (Attention(heads, kv_heads, head, head),) * layers, heads * head, 0, 1, Weights(1))


@pytest.mark.parametrize(
    ("shape", "context", "gib"),
    [
        (grouped(32, heads=32, kv_heads=8), 8192, 1.0),  # 8 billion parameters
        (grouped(80, heads=64, kv_heads=8), 32768, 10.0),  # 70 billion
    ],
)
def test_the_cache_of_well_known_models(shape: Shape, context: int, gib: float) -> None:
    for engine, kind in ((LlamaCpp(shape), "f16"), (Vllm(shape), "auto")):
        assert engine.need(Ask(context, 1, kind, kind)).kv == gib * GIB


def test_sliding_windows_do_not_grow_with_the_context() -> None:
    """62 layers, five of six with a window of 1,024: a naive sum says 15.5 GiB at 32,768 tokens."""
    full = Attention(32, 16, 128, 128)
    shape = Shape("gemma3", (*(replace(full, window=1024),) * 52, *(full,) * 10), 5376, 0, 1, Weights(1))
    naive = LlamaCpp(replace(shape, layers=(full,) * 62)).need(Ask(32768, 1)).kv
    assert naive == 15.5 * GIB
    engine = LlamaCpp(shape)
    # Windows also hold the 512 tokens that are being computed.
    assert engine.need(Ask(32768, 1)).kv == (10 * 32768 + 52 * (1024 + 512)) * 16 * 256 * 2
    assert engine.need(Ask(1024, 1)).kv == LlamaCpp(replace(shape, layers=(full,) * 62)).need(Ask(1024, 1)).kv
    assert kv_per_token(engine, Ask(4096, 1)) == 10 * 16 * 256 * 2


def test_latent_attention_does_not_grow_with_the_heads() -> None:
    """A naive sum over 128 heads with a key and a value of 128 is 57 times too big."""
    latent = Shape("deepseek2", (Latent(128, 512, 64),) * 60, 7168, 0, 1, Weights(1))
    need = LlamaCpp(latent).need(Ask(4096, 1)).kv
    assert need == 60 * 4096 * 576 * 2
    assert grouped(60, heads=128, kv_heads=128).layers[0] == Attention(128, 128, 128, 128)
    assert round(LlamaCpp(grouped(60, heads=128, kv_heads=128)).need(Ask(4096, 1)).kv / need) == 57


def test_a_state_costs_the_same_however_long_the_text() -> None:
    shape = Shape("mamba", (Recurrent(3 * 4096, 16 * 4096, 1),) * 48, 2048, 0, 1, Weights(1))
    engine = LlamaCpp(shape)
    assert engine.need(Ask(1, 1)).kv == engine.need(Ask(10**6, 1)).kv == 48 * 19 * 4096 * 4
    assert kv_per_token(engine, Ask(4096, 1)) == 0


@pytest.mark.parametrize(
    ("kind", "bits"), [("f32", 32), ("f16", 16), ("bf16", 16), ("q8_0", 8.5), ("q5_1", 6), ("q4_0", 4.5)]
)
def test_cache_types(kind: str, bits: float) -> None:
    engine = LlamaCpp(grouped(32, heads=32, kv_heads=8))
    assert engine.need(Ask(8192, 1, kind, kind)).kv == GIB * bits / 16
    assert engine.need(Ask(8192, 1, kind, "f16")).kv == GIB * (bits + 16) / 32


def test_cache_types_that_an_engine_lacks_are_refused() -> None:
    shape = grouped(1, heads=1, kv_heads=1, head=80)
    with pytest.raises(ConfigError, match="no KV cache of type 'fp8'"):
        LlamaCpp(shape).need(Ask(1, 1, "fp8", "fp8"))
    with pytest.raises(ConfigError, match="not a multiple of 32"):
        LlamaCpp(shape).need(Ask(1, 1, "q8_0", "q8_0"))
    with pytest.raises(ConfigError, match="no KV cache of type 'q8_0'"):
        Vllm(shape).need(Ask(1, 1, "q8_0", "q8_0"))
    with pytest.raises(ConfigError, match="at most 256 requests"):
        estimate(LlamaCpp(shape), Ask(1, 257), GIB)


def test_advice_by_what_is_too_large() -> None:
    engine = LlamaCpp(replace(grouped(32, heads=32, kv_heads=8), weights=Weights(4 * GIB)))
    small = estimate(engine, Ask(8192, 4), 2 * GIB, 131072)
    assert "any setting" in small.advice and "fewer bits" in small.advice
    assert (small.max_context, small.max_parallel) == (0, 0)
    enough = estimate(engine, Ask(8192, 4), 7 * GIB, 131072)
    assert enough.advice.endswith(
        f"fit: --context {enough.max_context}, --parallel {enough.max_parallel}, --kv-type q8_0."
    )
    assert enough.max_context % 256 == 0 and 0 < enough.max_parallel < 4
    assert "together" in estimate(engine, Ask(131072, 256), 5 * GIB).advice
    beyond = estimate(engine, Ask(8192, 1), 64 * GIB, 4096)
    assert beyond.fits and beyond.advice.endswith("--context 4096.")


def test_limits_by_themselves() -> None:
    engine = LlamaCpp(grouped(32, heads=32, kv_heads=8))
    assert longest(engine, Ask(1, 1), 0) == most_parallel(engine, Ask(1, 1), 0) == 0
    assert longest(engine, Ask(1, 1), 2**50, 12345) == 12345
    assert most_parallel(engine, Ask(256, 1), 2**50) == 256
