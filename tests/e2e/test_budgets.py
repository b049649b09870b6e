"""A thousand requests at once for one budget, at three gateways, while a gateway and a worker are killed: never beyond
the limit, nothing left reserved, and the ledger says the same."""

from __future__ import annotations

import asyncio
import socket
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.e2e.conftest import START_S, environ, until

if TYPE_CHECKING:
    from tests.e2e.conftest import Fabric

#: 1 US dollar for each token of an answer, and nothing for the question: 8 are reserved, 5 are spent.
CONFIG = """
models:
  - name: small
    deployments:
      - {name: broken, engine: mock, tier: cpu, slots: 16, options: {fail: 1}}
      - {name: net, engine: mock, tier: cloud, slots: 64, options: {latency_ms: 250, tokens: 5},
         price: {input_per_million: 0, output_per_million: 1000000}}
budgets:
  - {name: pot, usd: 2500, window: total}
  - {name: words, tokens: 1000000, window: total}
"""
LIMIT, RESERVED, COST, SUBMISSIONS = 2500, 8, 5, 1_000
#: When so many have been answered, these are killed.
STRIKES = {200: "api", 400: "worker-cloud"}
PATIENCE_S = 90
BODY = {"model": "small", "messages": [{"role": "user", "content": "hi"}], "max_tokens": RESERVED}


@contextmanager
def gateway(fabric: Fabric) -> Iterator[str]:
    """One more beside the fabric's own, as a process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "fabric.cli", "api", "--port", str(port)]
    variables = {name: value for name, value in fabric.environ.items() if name.startswith("FABRIC_")}
    with (fabric.folder / f"api-{port}.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=fabric.folder, env=environ(**variables), stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        assert process.poll() is None, (fabric.folder / f"api-{port}.log").read_text()
        try:
            return httpx.get(f"{url}/health/ready", trust_env=False, timeout=10).status_code == 200
        except httpx.TransportError:
            return False

    try:
        until(ready, within_s=START_S, hint="for another gateway")
        yield url
    finally:
        process.kill()
        process.wait(timeout=30)


async def submit_all(fabric: Fabric, urls: list[str]) -> list[tuple[int, str]]:
    """Status and job id of each request, however often it had to be sent."""
    answered = 0
    strikes = dict(STRIKES)
    deaths: list[asyncio.Task[None]] = []
    limits = httpx.Limits(max_connections=200)

    async def submit(number: int, http: httpx.AsyncClient) -> tuple[int, str]:
        nonlocal answered
        where = number
        async with asyncio.timeout(PATIENCE_S):
            while True:
                where += 1  # the next gateway, as a balancer would
                try:
                    answer = await http.post(
                        f"{urls[where % 3]}/v1/jobs",
                        json={"endpoint": "/v1/chat/completions", "body": BODY},
                        headers={"idempotency-key": f"n{number}"},
                    )
                except httpx.TransportError:
                    await asyncio.sleep(0.05)
                    continue
                if answer.status_code in (202, 402):
                    break
                await asyncio.sleep(0.05)
        answered += 1
        if victim := strikes.pop(answered, None):
            deaths.append(asyncio.create_task(asyncio.to_thread(fabric.kill, victim)))
        return answer.status_code, answer.json().get("id", "")

    async def watch(http: httpx.AsyncClient) -> None:
        """Never beyond the limit, not for a moment."""
        while True:
            try:
                (pot, _) = (await http.get(f"{urls[1]}/v1/budgets")).json()["data"]
                assert pot["spent_usd"] + pot["reserved_usd"] <= LIMIT
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.1)

    async with httpx.AsyncClient(limits=limits, timeout=60, trust_env=False) as http:
        watching = asyncio.create_task(watch(http))
        found = await asyncio.gather(*(submit(number, http) for number in range(SUBMISSIONS)))
        await asyncio.gather(*deaths)
        if watching.done():
            await watching
        watching.cancel()
    assert not strikes
    return found


def settled(fabric: Fabric) -> list[dict[str, Any]] | None:
    """The budgets, once nothing is reserved any more."""
    try:
        with fabric.http() as http:
            found: list[dict[str, Any]] = http.get("/v1/budgets").json()["data"]
    except httpx.TransportError:
        return None
    pot, words = found
    return found if pot["reserved_usd"] == 0 and words["reserved_tokens"] == 0 else None


def ledger(fabric: Fabric) -> tuple[float, Counter[tuple[str, str]]]:
    """US dollars of all attempts, and how many there were of each deployment and end."""
    with sqlite3.connect(fabric.data / "ledger.sqlite3") as connection:
        rows = connection.execute("SELECT deployment, state, cost_usd - machine_usd FROM usage")
        found = rows.fetchall()
    return sum(cost for _, _, cost in found), Counter((deployment, state) for deployment, state, _ in found)


def test_a_thousand_at_once_stay_within_the_budget_whoever_dies(fresh: Fabric) -> None:
    fabric = fresh.start(CONFIG)
    with ExitStack() as stack:
        urls = [fabric.url, *(stack.enter_context(gateway(fabric)) for _ in range(2))]
        with fabric.http() as http:
            until(lambda: http.get("/v1/budgets").json()["data"], within_s=30)
        answers = asyncio.run(submit_all(fabric, urls))
        pot, words = until(lambda: settled(fabric), within_s=PATIENCE_S, hint="until all was settled")
    accepted = [job_id for status, job_id in answers if status == 202]
    assert len(set(accepted)) == len(accepted)
    assert Counter(status for status, _ in answers).keys() == {202, 402}
    assert LIMIT / RESERVED <= len(accepted) + 1 <= LIMIT / COST + 1
    # Each ran once to its end; what died with the worker ran again, and was never paid for twice.
    assert pot["spent_usd"] == pytest.approx(COST * len(accepted))
    assert pot["spent_usd"] <= LIMIT
    until(lambda: ledger(fabric)[1]["net", "succeeded"] == len(accepted), within_s=30, hint="for the ledger")
    assert ledger(fabric)[0] == pytest.approx(pot["spent_usd"])
    assert words["spent_tokens"] > COST * len(accepted)
    assert ledger(fabric)[1]["broken", "requeued"] > 0  # some had fallen back
