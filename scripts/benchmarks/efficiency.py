"""How much of an engine's speed is left when the fabric stands before it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import mean

import click

from benchmarks.bare_server import PATH
from benchmarks.client import client, total
from benchmarks.command import benchmark
from benchmarks.fabric_up import fabric_up
from benchmarks.llama_server import llama_server
from benchmarks.load import Plan, Sample
from benchmarks.report import Budget, Report, Table, percentile
from benchmarks.stages import LedgerFile, cpu_ms, cpu_table
from benchmarks.vllm_server import vllm_server
from fabric.contracts.catalog import Deployment
from fabric.settings.defaults import shipped_model

BUDGET = 0.97
IN_FLIGHT = 64
CONTEXT = 1024
_ROUND_S = 10.0
_WARMUP_S = 3.0
#: The tokens with which these models end an answer, forbidden: answers are as long as they may be.
_NO_END = {"0": -100, "1": -100, "2": -100}
_THINGS = (
    *("fox", "sea", "king", "tree", "river", "house", "child", "stone"),
    *("bird", "dream", "city", "garden", "ship", "winter", "road", "song"),
)


@dataclass(frozen=True, slots=True)
class _Engine:
    """One that runs without the fabric at ``address``, and what ``fabric.yaml`` says of it, or of its like."""

    name: str
    address: str
    deployment: str
    #: Seconds of processor time that it took until now, where both sides share one server.
    cpu_s: Callable[[], float] | None = None


@contextmanager
def _llamacpp() -> Iterator[_Engine]:
    """The direct one has the parameters of the one that the worker starts."""
    values = {"engine": "llamacpp", "tier": "cpu", "slots": IN_FLIGHT, "context_window": CONTEXT}
    with llama_server(Deployment(name="tiny-cpu", model=str(shipped_model()), **values)) as socket:
        yield _Engine("llama.cpp", socket, json.dumps(values))


@contextmanager
def _vllm() -> Iterator[_Engine]:
    """Both sides use the same server, in turns."""
    with vllm_server("tiny", context=CONTEXT, in_flight=IN_FLIGHT) as server:
        values = {"engine": "vllm", "tier": "gpu", "slots": IN_FLIGHT, "context_window": CONTEXT, "model": "tiny"}
        deployment = json.dumps({**values, "base_url": f"http://{server.address}"})
        yield _Engine("vLLM", server.address, deployment, server.cpu_s)


_ENGINES = {"llamacpp": _llamacpp, "vllm": _vllm}


def _config(engine: _Engine) -> str:
    return f"models:\n  - name: tiny\n    deployments:\n      - {engine.deployment}\n"


def _bodies(tokens: int) -> list[str]:
    """Answers from half to one and a half times as long, so that they don't all end together."""
    return [
        json.dumps(
            {
                "model": "tiny",
                "messages": [{"role": "user", "content": f"Tell me a story about a {thing}."}],
                "max_tokens": tokens // 2 + tokens * number // (len(_THINGS) - 1),
                "logit_bias": _NO_END,
            }
        )
        for number, thing in enumerate(_THINGS)
    ]


def measure(engine_name: str, seconds: float, tokens: int) -> Report:
    rounds = max(1, round(seconds / _ROUND_S))
    with client() as load, _ENGINES[engine_name]() as engine, fabric_up(_config(engine)) as fabric:
        direct, through = (
            Plan(address, PATH, _bodies(tokens), IN_FLIGHT, warmup_s=_WARMUP_S, seconds=seconds / rounds)
            for address in (engine.address, fabric.address)
        )
        for plan in (direct, through):
            load.run(replace(plan, warmup_s=0.0, seconds=0.0, requests=2 * IN_FLIGHT))
        before = fabric.cpu_s()
        cores: tuple[list[float], list[float]] = ([], [])

        def turn(plan: Plan, took: list[float]) -> Sample:
            started, used = time.monotonic(), engine.cpu_s() if engine.cpu_s else 0.0
            sample = load.run(plan)
            if engine.cpu_s:
                took.append((engine.cpu_s() - used) / (time.monotonic() - started))
            return sample

        samples = [(turn(direct, cores[0]), turn(through, cores[1])) for _ in range(rounds)]
        used = fabric.cpu_since(before)
        stages = LedgerFile(fabric.data_dir).stages()
    alone, whole = (total(side) for side in zip(*samples, strict=True))
    rates = alone.tokens / alone.seconds, whole.tokens / whole.seconds
    answers = round(whole.answers * (1 + rounds * _WARMUP_S / whole.seconds))
    share = rates[1] / rates[0]
    return Report(
        "efficiency",
        rates[1],
        "tokens/s",
        rates[0],
        [Budget(f"of {engine.name} called directly", BUDGET * 100, share * 100, "%", at_least=True)],
        [
            Table(
                (f"{IN_FLIGHT} in flight", "direct", "fabric"),
                [
                    ("tokens/s", *rates),
                    ("answers/s", *(s.answers / s.seconds for s in (alone, whole))),
                    ("p50, ms", *(percentile(s.latencies_s, 0.5) * 1000 for s in (alone, whole))),
                    *([("processor cores of the engine", *map(mean, cores))] if engine.cpu_s else []),
                    *(
                        (f"round {n + 1}, tokens/s", *(s.tokens / s.seconds for s in pair))
                        for n, pair in enumerate(samples)
                    ),
                ],
            ),
            stages.table(whole_ms=mean(whole.latencies_s) * 1000),
            cpu_table(used, answers),
        ],
        {
            "engine": engine_name,
            "in_flight": IN_FLIGHT,
            "tokens_per_answer": tokens,
            "cpu_ms_per_job": cpu_ms(used, answers),
        },
    )


@benchmark
@click.option("--engine", "engine_name", default="llamacpp", show_default=True, type=click.Choice(sorted(_ENGINES)))
@click.option("--seconds", default=40.0, show_default=True, help="How long to measure each side.")
@click.option("--tokens", default=256, show_default=True, help="Mean length of an answer.")
def command(engine_name: str, seconds: float, tokens: int) -> Report:
    """Tokens a second through the fabric, against the same llama.cpp or vLLM called directly, with 64 requests in
    flight."""
    return measure(engine_name, seconds, tokens)
