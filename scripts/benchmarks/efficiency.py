"""How much of llama.cpp's speed is left when the fabric stands before it."""

from __future__ import annotations

import json
from dataclasses import replace

import click

from benchmarks.bare_server import PATH
from benchmarks.client import client, total
from benchmarks.command import benchmark
from benchmarks.fabric_up import fabric_up
from benchmarks.llama_server import llama_server
from benchmarks.load import Plan
from benchmarks.report import Budget, Report, Table, percentile
from benchmarks.stages import cpu_ms, cpu_table
from fabric.contracts.catalog import Deployment
from fabric.settings.defaults import shipped_model

BUDGET = 0.97
IN_FLIGHT = 64
CONTEXT = 1024
_ROUND_S = 10.0
_WARMUP_S = 3.0
#: The tokens with which the shipped model ends an answer, forbidden: answers are as long as they may be.
_NO_END = {"0": -100, "1": -100, "2": -100}
_THINGS = (
    *("fox", "sea", "king", "tree", "river", "house", "child", "stone"),
    *("bird", "dream", "city", "garden", "ship", "winter", "road", "song"),
)
_CONFIG = f"""
models:
  - name: tiny
    deployments:
      - {{engine: llamacpp, tier: cpu, slots: {IN_FLIGHT}, context_window: {CONTEXT}}}
"""


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


def measure(seconds: float, tokens: int) -> Report:
    rounds = max(1, round(seconds / _ROUND_S))
    deployment = Deployment(
        name="tiny-cpu",
        engine="llamacpp",
        tier="cpu",
        model=str(shipped_model()),
        slots=IN_FLIGHT,
        context_window=CONTEXT,
    )
    with client() as load, llama_server(deployment) as bare, fabric_up(_CONFIG) as fabric:
        direct, through = (
            Plan(address, PATH, _bodies(tokens), IN_FLIGHT, warmup_s=_WARMUP_S, seconds=seconds / rounds)
            for address in (bare, fabric.address)
        )
        for plan in (direct, through):
            load.run(replace(plan, warmup_s=0.0, seconds=0.0, requests=2 * IN_FLIGHT))
        before = fabric.cpu_s()
        samples = [(load.run(direct), load.run(through)) for _ in range(rounds)]
        used = fabric.cpu_since(before)
    alone, whole = (total(side) for side in zip(*samples, strict=True))
    rates = alone.tokens / alone.seconds, whole.tokens / whole.seconds
    answers = round(whole.answers * (1 + rounds * _WARMUP_S / whole.seconds))
    share = rates[1] / rates[0]
    return Report(
        "efficiency",
        rates[1],
        "tokens/s",
        rates[0],
        [Budget("of llama.cpp called directly", BUDGET * 100, share * 100, "%", at_least=True)],
        [
            Table(
                (f"{IN_FLIGHT} in flight", "direct", "fabric"),
                [
                    ("tokens/s", *rates),
                    ("answers/s", *(s.answers / s.seconds for s in (alone, whole))),
                    ("p50, ms", *(percentile(s.latencies_s, 0.5) * 1000 for s in (alone, whole))),
                    *(
                        (f"round {n + 1}, tokens/s", *(s.tokens / s.seconds for s in pair))
                        for n, pair in enumerate(samples)
                    ),
                ],
            ),
            cpu_table(used, answers),
        ],
        {
            "in_flight": IN_FLIGHT,
            "tokens_per_answer": tokens,
            "cpu_ms_per_job": cpu_ms(used, answers),
        },
    )


@benchmark
@click.option("--seconds", default=40.0, show_default=True, help="How long to measure each side.")
@click.option("--tokens", default=256, show_default=True, help="Mean length of an answer.")
def command(seconds: float, tokens: int) -> Report:
    """Tokens a second through the fabric, against the same llama.cpp called directly, with 64 requests in flight."""
    return measure(seconds, tokens)
