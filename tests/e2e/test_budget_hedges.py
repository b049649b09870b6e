"""A thousand requests at once, at three gateway processes, with falling back and with second tries that hold a
reservation of their own: never beyond the limit, nothing left reserved, and the ledger says the same."""

from __future__ import annotations

import asyncio
import json
import select
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.e2e.conftest import new_fabric, until
from tests.e2e.played import chat, playing, say
from tests.e2e.test_accounts import metrics
from tests.e2e.test_budgets import gateway, ledger

if TYPE_CHECKING:
    from tests.e2e.conftest import Fabric

SUBMISSIONS, CONNECTIONS, LONGEST, COST = 1_000, 128, 8, 5
#: At the dearest place a token costs four dollars, so that two tries elsewhere fit under a job's own cap.
RESERVED = 4 * LONGEST
LIMIT = 100 * RESERVED
PATIENCE_S = 120
#: How long what is held waits for its second try: only so many jobs get one.
HELD_S = 10
CHATS = "/v1/chat/completions"


class Provider(ThreadingHTTPServer):
    """Hosted APIs. The first place holds every twentieth request until it is taken back."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        text = json.loads(self.rfile.read(int(self.headers["content-length"])))["messages"][0]["content"]
        if self.path.startswith("/first/") and text.endswith("held"):
            self.close_connection = True
            readable, _, _ = select.select([self.connection], [], [], HELD_S)
            if readable:  # it was taken back
                return
        usage = {"prompt_tokens": 3, "completion_tokens": COST, "total_tokens": 3 + COST}
        say(self, 200, chat("ok", usage))

    def log_message(self, format: str, *args: Any) -> None: ...


def config(url: str) -> str:
    def hosted(name: str, dollars: float) -> dict[str, Any]:
        at = {"engine": "openai", "tier": "cloud", "model": "m", "base_url": f"{url}/{name}/v1"}
        price = {"input_per_million": 0, "output_per_million": dollars * 1_000_000}
        return {"name": name, **at, "api_key_env": "PLAYED_KEY", "slots": 64, "price": price}

    broken = {"name": "broken", "engine": "mock", "tier": "cpu", "slots": 16, "options": {"fail": 1}}
    return json.dumps(
        {
            "policies": {"steady": {"kind": "cheapest", "hedge": True}},
            "default_policy": "steady",
            "budgets": [{"name": "pot", "usd": LIMIT, "window": "total"}],
            "models": [
                {"name": "m", "deployments": [broken, hosted("first", 1), hosted("second", 1.01), hosted("dear", 4)]}
            ],
        }
    )


@pytest.fixture
def provider() -> Iterator[Provider]:
    with playing(Provider()) as server:
        yield server


@pytest.fixture
def fabric(provider: Provider) -> Iterator[Fabric]:
    for fabric in new_fabric(PLAYED_KEY="played"):
        yield fabric.start(config(provider.url))


def asked(text: str) -> dict[str, Any]:
    body = {"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": LONGEST}
    return {"endpoint": CHATS, "body": body, "fabric": {"priority": "interactive"}}


def usual(http: httpx.Client) -> bool:
    """One more request; answers whether it is known by now what is usual."""
    body: dict[str, Any] = asked("hello")["body"]
    answer = http.post(CHATS, json=body)
    if answer.status_code != 200:  # its budget is being counted
        return False
    job = http.get(f"/v1/jobs/{answer.headers['x-fabric-job-id']}").json()
    return any(place["deployment"] == "first" and place["measured"] for place in job["decision"]["plan"])


async def submit_all(urls: list[str]) -> Counter[int]:
    """How often which answer came."""

    async def watch(http: httpx.AsyncClient) -> None:
        """Never beyond the limit, not for a moment."""
        while True:
            (pot,) = (await http.get(f"{urls[1]}/v1/budgets")).json()["data"]
            assert pot["spent_usd"] + pot["reserved_usd"] <= LIMIT
            await asyncio.sleep(0.1)

    # Not all in the client's own queue, which takes longer the longer it is.
    at_once = asyncio.Semaphore(CONNECTIONS)

    async def submit(number: int, http: httpx.AsyncClient) -> int:
        text = f"{number} held" if number % 20 == 0 else str(number)
        async with at_once:
            return (await http.post(f"{urls[number % 3]}/v1/jobs", json=asked(text))).status_code

    async with httpx.AsyncClient(
        limits=httpx.Limits(max_connections=CONNECTIONS + 1), timeout=60, trust_env=False
    ) as http:
        watching = asyncio.create_task(watch(http))
        found = Counter(await asyncio.gather(*(submit(number, http) for number in range(SUBMISSIONS))))
        await asyncio.to_thread(until, lambda: settled(urls[0]), within_s=PATIENCE_S, hint="until all was settled")
        if watching.done():
            await watching
        watching.cancel()
    return found


def settled(url: str) -> dict[str, Any] | None:
    """The budget, once nothing is reserved any more."""
    (pot,) = httpx.get(f"{url}/v1/budgets", timeout=60, trust_env=False).json()["data"]
    return pot if pot["reserved_usd"] == 0 else None


@pytest.mark.timeout(400)
def test_a_thousand_at_once_with_second_tries_stay_within_the_budget(fabric: Fabric) -> None:
    with ExitStack() as stack:
        http = stack.enter_context(fabric.http())
        until(lambda: usual(http), within_s=PATIENCE_S, hint="for the pace of a place")
        urls = [fabric.url, *(stack.enter_context(gateway(fabric)) for _ in range(2))]
        answers = asyncio.run(submit_all(urls))
        pot = settled(fabric.url)
        hedges = metrics(http, "fabric_hedges_total", "result")
    assert pot is not None
    assert answers.keys() == {202, 402} and answers.total() == SUBMISSIONS, answers
    assert hedges.get(("begun",), 0) > 0 and hedges.get(("won",), 0) > 0, hedges
    # What the winners did cost, and the prompts of those that were stopped, which are free here.
    assert 0 < pot["spent_usd"] <= LIMIT
    until(lambda: ledger(fabric)[0] == pytest.approx(pot["spent_usd"]), within_s=60, hint="for the ledger")
    counted = ledger(fabric)[1]
    assert counted["broken", "requeued"] > 0, "some had fallen back"
    assert counted["second", "succeeded"] >= hedges["won",]
