"""What a batch on the same worker adds to the time that people wait for their first token."""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import httpx

from benchmarks.command import benchmark
from benchmarks.deeper_model import write_deeper
from benchmarks.fabric_up import FabricUp, fabric_up
from benchmarks.processes import Void, until
from benchmarks.report import Budget, Report, Table, percentile

#: The p99 of the time to the first token may rise by so much over that of an idle worker.
BUDGET_PERCENT = 36.0
_SLOTS = 4
#: Between two requests of a person, in the mean.
_THINK_S = 0.1
_TOKENS = 32
#: Words of a prompt, of people's and of the batch's.
_PROMPT_WORDS = (10, 30, 100, 200)
_WORDS = (
    *("fox", "sea", "king", "tree", "river", "house", "child", "stone"),
    *("bird", "dream", "city", "garden", "ship", "winter", "road", "song"),
)
_START_S = 60.0


@dataclass(frozen=True, slots=True)
class Beside:
    """Seconds to each first token beside a batch, and how many of its lines were answered meanwhile, in how long."""

    first_token_s: list[float]
    lines: int
    seconds: float


def question(chance: random.Random, tokens: int) -> dict[str, Any]:
    words = " ".join(chance.choices(_WORDS, k=chance.choice(_PROMPT_WORDS)))
    asked = [{"role": "user", "content": f"Tell me a story with these words: {words}."}]
    return {"model": "mixed", "messages": asked, "max_tokens": tokens}


def ask(http: httpx.Client, requests: int, seed: int) -> list[float]:
    """One streamed request after the other, with pauses; answers the seconds to each first token."""
    chance = random.Random(seed)
    waits: list[float] = []
    for _ in range(requests):
        time.sleep(chance.expovariate(1 / _THINK_S))
        body = {**question(chance, _TOKENS), "stream": True}
        began = time.perf_counter()
        with http.stream("POST", "/v1/chat/completions", json=body) as answer:
            if answer.status_code != 200:
                raise Void(f"a request was answered with {answer.status_code}: {answer.read()[:300]!r}")
            waits.append(_first_token(answer, began))
    return waits


def _first_token(answer: httpx.Response, began: float) -> float:
    """Reads the whole stream; a chunk without text (the role) is no token."""
    first: float | None = None
    for line in answer.iter_lines():
        if first is None and line.startswith("data: {") and _speaks(json.loads(line[6:])):
            first = time.perf_counter() - began
    if first is None:
        raise Void("a stream ended without a token")
    return first


def _speaks(chunk: dict[str, Any]) -> bool:
    return any(choice["delta"].get("content") for choice in chunk.get("choices", ()))


def _lines(lines: int, tokens: int) -> str:
    """Answers from half to one and a half times as long, so that slots don't all come free at once."""
    chance = random.Random(7)
    bodies = (question(chance, chance.randint(tokens // 2, 3 * tokens // 2)) for _ in range(lines))
    asked = (
        {"custom_id": str(n), "method": "POST", "url": "/v1/chat/completions", "body": b} for n, b in enumerate(bodies)
    )
    return "".join(json.dumps(line) + "\n" for line in asked)


def beside_a_batch(http: httpx.Client, batch: str, requests: int, seed: int) -> Beside:
    """Asks while the lines of a batch run; what is left of it then is cancelled.

    Raises:
        Void: it was over before.
    """
    file = http.post("/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", batch.encode())}).json()
    asked = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    path = f"/v1/batches/{http.post('/v1/batches', json=asked).json()['id']}"

    def answered() -> int:
        counts: dict[str, int] = http.get(path).json()["request_counts"]
        return counts["completed"] + counts["failed"]

    until(lambda: answered() > 0, within_s=_START_S, missing="no line of the batch was answered")
    began, before = time.perf_counter(), answered()
    waits = ask(http, requests, seed)
    seconds, after = time.perf_counter() - began, answered()
    if http.get(path).json()["status"] != "in_progress":
        raise Void("the batch was over before: give it more lines or longer answers")
    http.post(f"{path}/cancel")
    until(
        lambda: http.get(path).json()["status"] == "cancelled", within_s=_START_S, missing="the batch isn't cancelled"
    )
    return Beside(waits, after - before, seconds)


@contextmanager
def served(depth: int) -> Iterator[tuple[FabricUp, httpx.Client]]:
    with tempfile.TemporaryDirectory(prefix="fabric-bench-", dir="/tmp") as folder:
        model = Path(folder) / "deeper.gguf"
        write_deeper(model, depth)
        place = f"{{engine: llamacpp, tier: cpu, model: {model}, slots: {_SLOTS}, context_window: 1024}}"
        config = f"models:\n  - name: mixed\n    deployments:\n      - {place}\n"
        with fabric_up(config) as fabric, httpx.Client(base_url=fabric.url, timeout=120, trust_env=False) as http:
            yield fabric, http


def measure(rounds: int, requests: int, lines: int, tokens: int, depth: int) -> Report:
    idle: list[float] = []
    mixed: list[Beside] = []
    batch = _lines(lines, tokens)
    with served(depth) as (_, http):
        ask(http, 10, seed=0)
        for number in range(rounds):
            idle += ask(http, requests, seed=number)
            mixed.append(beside_a_batch(http, batch, requests, seed=number))
    idle.sort()
    busy = sorted(wait for round_ in mixed for wait in round_.first_token_s)
    shares = (0.5, 0.9, 0.99)
    rise = {share: (percentile(busy, share) / percentile(idle, share) - 1) * 100 for share in shares}
    return Report(
        "mixed",
        rise[0.99],
        "% more at p99",
        None,
        [Budget("p99 of the time to the first token over idle", BUDGET_PERCENT, rise[0.99], "%")],
        [
            Table(
                ("time to the first token, ms", "idle", "beside a batch", "more, %"),
                [
                    (f"p{share * 100:.0f}", percentile(idle, share) * 1000, percentile(busy, share) * 1000, rise[share])
                    for share in shares
                ],
            ),
            Table(
                ("meanwhile", *(f"round {n + 1}" for n in range(rounds))),
                [("batch lines/s", *(m.lines / m.seconds for m in mixed))],
            ),
        ],
        {
            "lines": lines,
            "tokens_per_line": tokens,
            "lines_per_s": sum(m.lines for m in mixed) / sum(m.seconds for m in mixed),
            "requests": len(busy),
            "depth": depth,
        },
    )


@benchmark
@click.option("--rounds", default=3, show_default=True, help="Batches; before each there is a time without one.")
@click.option("--requests", default=100, show_default=True, help="Streamed requests of one side of a round.")
@click.option("--lines", default=2_000, show_default=True, help="Lines of a batch.")
@click.option("--tokens", default=64, show_default=True, help="Mean length of a line's answer.")
@click.option("--depth", default=24, show_default=True, help="How many times as deep as the shipped model.")
def command(rounds: int, requests: int, lines: int, tokens: int, depth: int) -> Report:
    """How much longer people wait for their first token while a batch runs on the same llama.cpp worker."""
    return measure(rounds, requests, lines, tokens, depth)
