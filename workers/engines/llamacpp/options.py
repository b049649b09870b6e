"""What a deployment may set, and the llama.cpp parameters that follow from it and from the model. Pure."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fabric.contracts.catalog import Deployment
from fabric.contracts.errors import ConfigError
from fabric.fit.gguf import Header
from fabric.fit.llamacpp import LlamaCpp
from fabric.fit.need import Ask
from workers.engines.llamacpp.room import Room, known_shape, slots_with_room

log = logging.getLogger(__name__)

#: Slots without a word from the operator. Weights are read once for all sequences that are computed
#: together, so that a few cost little more than one; many would each get too little of a CPU.
_SLOTS_PER_CORE = 2
_FEWEST_SLOTS, _MOST_SLOTS = 4, 8
#: llama.cpp rounds a slot's share of the cache up to this many tokens.
_CACHE_STEP = 256
#: Weights that make a thread of their own worth while. Threads wait for each other several hundred times
#: a token: where there is little to do between, and something else wants the core, they mostly wait. On
#: 2 cores that others use too, the shipped model (4 MB) writes twice as fast with one thread as with two.
_THREAD_BYTES = 16 * 2**20
#: Tokens computed in one go. A request that is called off, and every other one that runs, waits for
#: the end of what is being computed: larger reads prompts a little faster, smaller answers sooner.
_BATCH_TOKENS = 512
#: Copies of sliding windows and recurrent states that a slot keeps, so that the next prompt of a conversation
#: needn't be read from its beginning. llama.cpp's own 32 can take more than the model.
CHECKPOINTS = 2
#: What an embedding is made of must be computed in one go: the batch grows with the context window as
#: long as its buffers stay below this.
_BATCH_BYTES = 256 * 2**20

CacheType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]

_Temperature = Annotated[float, Field(ge=0, le=2)]
_Share = Annotated[float, Field(ge=0, le=1)]


class LlamaCppOptions(BaseModel):
    """``options`` of a deployment with ``engine: llamacpp``."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)

    #: Threads that compute. Default: the physical cores that the worker may use; fewer for tiny models.
    threads: Annotated[int, Field(ge=1, le=512)] | None = None
    #: Tokens computed in one go (see ``_BATCH_TOKENS``); an embedding's input can't be longer.
    batch_tokens: Annotated[int, Field(ge=32, le=65_536)] | None = None
    #: Number format of the KV cache. Fewer bits: more context in the same memory, slower and less exact.
    cache_type_k: CacheType = "f16"
    cache_type_v: CacheType = "f16"
    flash_attention: Literal["auto", "on", "off"] = "auto"
    #: Map the file into memory instead of reading it: starts at once and shares pages between workers.
    mmap: bool = True
    #: Keep the weights from being swapped out. Needs the right to lock that much memory.
    mlock: bool = False
    #: Memory for prompts that no slot holds any more, in MiB. Saves reading a long conversation again
    #: when more conversations take turns than there are slots.
    prompt_cache_mib: Annotated[int, Field(ge=0, le=1_048_576)] = 0
    #: How token embeddings become one. Default: what the file says, else their mean.
    pooling: Literal["mean", "cls", "last"] | None = None
    #: A template in Jinja or the name of one of llama.cpp's; for files without one of their own.
    chat_template: Annotated[str, Field(min_length=1)] | None = None
    #: Sampling of requests that don't say. Default: the file's own, else llama.cpp's.
    temperature: _Temperature | None = None
    top_p: _Share | None = None
    min_p: _Share | None = None
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32 - 1)] | None = None
    #: How long the model may take to load, in seconds.
    start_timeout_s: Annotated[float, Field(gt=0, le=86_400)] = 600.0


def parse_options(deployment: Deployment) -> LlamaCppOptions:
    """
    Raises:
        ConfigError: names the option.
    """
    try:
        return LlamaCppOptions.model_validate(deployment.options)
    except ValidationError as error:
        finding = error.errors(include_url=False, include_input=False)[0]
        name = ".".join(str(step) for step in finding["loc"])
        if finding["type"] == "extra_forbidden":
            known = ", ".join(LlamaCppOptions.model_fields)
            problem = f"the llamacpp engine has no option `{name}`; it has {known}."
        else:
            problem = f"option `{name}`: {finding['msg']}."
        raise ConfigError(f"Deployment {deployment.name!r}: {problem}") from None


def model_path(deployment: Deployment) -> Path:
    return Path(deployment.model).expanduser().absolute()


@dataclass(frozen=True, slots=True)
class Plan:
    """How the model will run. ``context``: tokens of prompt and answer together. ``need``: bytes of memory.

    ``params`` are those of the server that writes, ``embedding_params`` those of the one that makes
    embeddings (see ``child.py``); ``None`` where the deployment doesn't do that.

    Two servers, because in llama.cpp the slots that write best are wrong for embeddings: with a cache
    for each slot it makes a mean of the wrong tokens when texts of different length come together, and
    with one cache for all of them writing takes up to twice the time. The second maps the same file.
    """

    slots: int
    context: int
    need: int
    params: dict[str, Any] | None
    embedding_params: dict[str, Any] | None


def plan(deployment: Deployment, options: LlamaCppOptions, header: Header, *, cores: int, memory: int) -> Plan:
    """
    ``cores`` and ``memory`` (bytes) are what the machine has to give.

    Raises:
        ConfigError: the model can't do what the deployment says that it can.
    """
    _check(deployment, options, header)
    context = _context(deployment, header)
    writes = any(capability in deployment.capabilities for capability in ("chat", "completions"))
    embeds = "embeddings" in deployment.capabilities
    slots, need = _slots(deployment, options, header, context, writes=writes, embeds=embeds, cores=cores, memory=memory)
    threads = options.threads or max(1, min(cores, header.file_size // _THREAD_BYTES))
    common = _common(deployment, options, threads)
    return Plan(
        slots,
        context,
        need,
        common | _writing(options, slots, context) if writes else None,
        common | _embedding(options, header, context, alone=not writes) if embeds else None,
    )


def _slots(
    deployment: Deployment,
    options: LlamaCppOptions,
    header: Header,
    context: int,
    *,
    writes: bool,
    embeds: bool,
    cores: int,
    memory: int,
) -> tuple[int, int]:
    """Slots, and the bytes that the deployment takes with them.

    Raises:
        ConfigError: there is no room for so many, or for the model.
    """
    wanted = deployment.slots or max(_FEWEST_SLOTS, min(_MOST_SLOTS, _SLOTS_PER_CORE * cores))
    shape = known_shape(header)
    if shape is None:
        return wanted, header.file_size  # and something for its contexts, which can't be told
    writer = LlamaCpp(
        shape,
        options.batch_tokens or _BATCH_TOKENS,
        mmap=options.mmap,
        mlock=options.mlock,
        flash_attention=options.flash_attention != "off",
        checkpoints=CHECKPOINTS,
    )
    ask = Ask(context, wanted, options.cache_type_k, options.cache_type_v)
    if writes and not deployment.slots:
        ask = replace(ask, parallel=slots_with_room(writer, ask, wanted, memory))
    batch = options.batch_tokens or _embedding_batch(header, context)
    embedder = replace(writer, batch=batch, repack=not writes, checkpoints=0)
    room = Room(writer if writes else None, embedder if embeds else None, ask, memory)
    room.check(deployment)
    return ask.parallel, room.need


def _common(deployment: Deployment, options: LlamaCppOptions, threads: int) -> dict[str, Any]:
    load_mode = {(True, True): "mmap_mlock", (True, False): "mmap", (False, True): "mlock", (False, False): "none"}
    return {
        "model.path": str(model_path(deployment)),
        "cpuparams.n_threads": threads,
        "cpuparams_batch.n_threads": threads,
        "cache_type_k": options.cache_type_k,
        "cache_type_v": options.cache_type_v,
        "flash_attn_type": options.flash_attention,
        "load_mode": load_mode[options.mmap, options.mlock],
        "kv_unified": False,
        "ui": False,
    }


def _writing(options: LlamaCppOptions, slots: int, context: int) -> dict[str, Any]:
    batch = options.batch_tokens or _BATCH_TOKENS
    optional = {
        "chat_template": options.chat_template,
        "sampling.temp": options.temperature,
        "sampling.top_p": options.top_p,
        "sampling.min_p": options.min_p,
        "sampling.top_k": options.top_k,
        "sampling.seed": options.seed,
    }
    return {
        # Each slot gets its own part of the cache, and no more of it than the context window says.
        "n_parallel": slots,
        "n_ctx": _rounded(context) * slots,
        "kv_unified_per_slot": context,
        "n_batch": batch,
        "n_ubatch": batch,
        "cache_ram_mib": options.prompt_cache_mib,
        "cache_idle_slots": options.prompt_cache_mib > 0,
        "n_ctx_checkpoints": CHECKPOINTS,
        "n_threads_http": slots + 2,
        # A conversation that ends with the assistant's words gets a new answer, as OpenAI's does.
        "prefill_assistant": False,
    } | {name: value for name, value in optional.items() if value is not None}


def _embedding(options: LlamaCppOptions, header: Header, context: int, *, alone: bool) -> dict[str, Any]:
    """One text at a time: a text's tokens fill the cores, and several only help where they are very short."""
    batch = options.batch_tokens or _embedding_batch(header, context)
    pooling = {"pooling_type": options.pooling or "mean"} if options.pooling or not header.pools else {}
    return {
        "embedding": True,
        "n_parallel": 1,
        "n_ctx": _rounded(context),
        "kv_unified_per_slot": context,
        "n_batch": batch,
        "n_ubatch": batch,
        "cache_ram_mib": 0,
        "cache_idle_slots": False,
        "n_threads_http": 3,
        # Weights in another order are quicker, but can't be shared with the server that writes.
        "no_extra_bufts": not alone,
    } | pooling


def _rounded(tokens: int) -> int:
    return -(-tokens // _CACHE_STEP) * _CACHE_STEP


def _check(deployment: Deployment, options: LlamaCppOptions, header: Header) -> None:
    capabilities = deployment.capabilities
    who = f"Deployment {deployment.name!r}"
    if "vision" in capabilities:
        raise ConfigError(f"{who}: the llamacpp engine doesn't read images; remove `vision` from `capabilities`.")
    if not header.generates and (wrong := [c for c in capabilities if c != "embeddings"]):
        raise ConfigError(
            f"{who}: {deployment.model} only makes embeddings; take {', '.join(wrong)} out of `capabilities`."
        )
    if "chat" in capabilities and not (header.chat_template or options.chat_template):
        raise ConfigError(
            f"{who}: {deployment.model} has no chat template; set `options.chat_template` (such as chatml), "
            "or leave `chat` out of `capabilities`."
        )


def _context(deployment: Deployment, header: Header) -> int:
    trained = header.context_length
    if trained is None or deployment.context_window <= trained:
        return deployment.context_window
    log.warning(
        "deployment %s: context_window %d is more than the %d tokens that the model was trained with; longer "
        "requests are refused. Set context_window: %d",
        deployment.name,
        deployment.context_window,
        trained,
        trained,
    )
    return trained


def _embedding_batch(header: Header, context: int) -> int:
    """The whole context window, where the buffers for it are small."""
    outputs = header.vocabulary or 0 if header.generates else 0
    per_token = 4 * (outputs + 8 * (header.embedding_length or 0))
    affordable = _BATCH_BYTES // per_token if per_token else _BATCH_TOKENS
    return min(context, max(_BATCH_TOKENS, affordable))
