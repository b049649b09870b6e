"""Provider batch APIs: many jobs in one batch, home line by line, none sent twice, pulled back in time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import pytest

from fabric.contracts.catalog import Catalog, Deployment
from fabric.contracts.errors import FabricError
from fabric.pricing import priced
from fabric.settings.batch_apis import with_batch_apis
from tests.workers.engines import fake_batches
from workers.engines.anthropic_batch import AnthropicBatches
from workers.engines.batch_engine import BatchEngine
from workers.engines.engine import Answer, Request
from workers.engines.openai_batch import OpenAIBatches
from workers.engines.provider_batch import LocalRegister

Kind = Literal["openai", "anthropic"]
BOTH: tuple[Kind, ...] = ("openai", "anthropic")
PATIENCE_S = 60
SETTINGS = {"gather_s": 0.05, "poll_s": 0.05, "reserve_s": 0.0}


@pytest.fixture(autouse=True)
def a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIG_KEY", "sk-of-the-operator")


@pytest.fixture
def provider() -> Iterator[Any]:
    fake = fake_batches.FakeBatches()
    yield fake
    fake.stop()


def deployment(kind: Kind, url: str, **settings: Any) -> Deployment:
    """The second place that ``batch_api`` makes of a deployment."""
    written = {
        "name": "big",
        "engine": kind,
        "tier": "cloud",
        "model": "big",
        "base_url": url if kind == "openai" else url.removesuffix("/v1"),
        "api_key_env": "BIG_KEY",
        "price": {"input_per_million": 2.0, "output_per_million": 8.0},
        "batch_api": SETTINGS | settings,
    }
    catalog = priced(Catalog.model_validate({"models": [{"name": "m", "deployments": [written]}]}))
    return with_batch_apis(catalog).by_deployment["big-batch"]


@asynccontextmanager
async def working(
    place: Deployment, register: LocalRegister | None = None, **options: Any
) -> AsyncIterator[BatchEngine]:
    batches = OpenAIBatches(place) if place.engine == "openai_batch" else AnthropicBatches(place)
    engine = BatchEngine(place, batches, register, settle_s=0.5, **options)
    await engine.start()
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield engine
    finally:
        await engine.close()


def asked(number: int, **fields: Any) -> Request:
    body = {"messages": [{"role": "user", "content": f"question {number}"}], "max_tokens": 50}
    return Request(f"job_{number:026}", "/v1/chat/completions", body, False, **fields)


def run(engine: BatchEngine, *requests: Request) -> list[asyncio.Task[Answer]]:
    return [asyncio.create_task(engine.run(request, lambda chunk: None)) for request in requests]


async def reached(provider: Any, condition: Callable[[], object]) -> None:
    await asyncio.to_thread(provider.until, condition)


def text(answer: Answer) -> str:
    said: str = answer.body["choices"][0]["message"]["content"]
    return said


@pytest.mark.parametrize("kind", BOTH)
async def test_many_jobs_go_in_one_batch_and_each_gets_its_own_answer(kind: Kind, provider: Any) -> None:
    async with working(deployment(kind, provider.url)) as engine:
        tasks = run(engine, *(asked(n) for n in range(200)))
        await reached(provider, lambda: provider.batches)
        assert not any(task.done() for task in tasks)
        provider.release.set()
        answers = await asyncio.gather(*tasks)
    assert [text(answer) for answer in answers] == [f"echo job_{n:026}" for n in range(200)]
    assert {(a.usage.input_tokens, a.usage.output_tokens) for a in answers} == {(100, 50)}
    assert len(provider.batches) == 1
    assert provider.sync_calls == 0


def test_it_is_a_place_of_its_own_at_half_the_price(provider: Any) -> None:
    place = deployment("openai", provider.url)
    assert (place.engine, place.tier, place.waits) == ("openai_batch", "cloud", True)
    assert (place.price.input_per_million, place.price.output_per_million) == (1.0, 4.0)
    assert not place.takes("interactive")
    assert place.takes("batch")


@pytest.mark.parametrize("kind", BOTH)
async def test_who_comes_back_joins_the_batch_that_is_there(kind: Kind, provider: Any) -> None:
    """A worker that was killed leaves its register; the job's next worker finds the job in it."""
    register = LocalRegister()
    place = deployment(kind, provider.url)
    async with working(place, register) as engine:
        first = run(engine, asked(1), asked(2))
        await reached(provider, lambda: provider.batches)
        for job in (asked(1), asked(2)):
            engine.let_go(job.job_id)
        for task in first:
            task.cancel()
        await asyncio.gather(*first, return_exceptions=True)
    async with working(place, register) as engine:
        again = run(engine, asked(1), asked(2))
        provider.release.set()
        assert [text(answer) for answer in await asyncio.gather(*again)] == [f"echo {asked(n).job_id}" for n in (1, 2)]
    assert len(provider.batches) == 1


async def test_a_batch_of_which_nobody_knows_whether_it_was_made_is_looked_for(provider: Any) -> None:
    provider.refuse("POST", "/batches", 0, after=True)  # made, but the answer is lost
    provider.release.set()
    async with working(deployment("openai", provider.url)) as engine:
        (answer,) = await asyncio.gather(*run(engine, asked(1)))
    assert text(answer) == f"echo {asked(1).job_id}"
    assert len(provider.batches) == 1


async def test_one_that_was_never_made_is_made_again(provider: Any) -> None:
    provider.refuse("POST", "/batches", 500)
    provider.release.set()
    async with working(deployment("openai", provider.url)) as engine:
        (answer,) = await asyncio.gather(*run(engine, asked(1)))
    assert text(answer) == f"echo {asked(1).job_id}"
    assert len(provider.batches) == 1


@pytest.mark.parametrize("kind", BOTH)
async def test_trouble_on_the_way_is_waited_out(kind: Kind, provider: Any) -> None:
    look = "/batches/" if kind == "openai" else "/messages/batches/"
    make = "/batches" if kind == "openai" else "/messages/batches"
    provider.refuse("POST", make, 429, {"error": {"type": "rate_limit_error", "message": "later"}}, retry_after="0")
    provider.refuse("GET", look, 500)
    provider.refuse("GET", look, 503)
    provider.cut_results_at.append(40)
    provider.release.set()
    async with working(deployment(kind, provider.url)) as engine:
        answers = await asyncio.gather(*run(engine, asked(1), asked(2)))
    assert len(answers) == 2
    assert len(provider.batches) == 1


async def test_a_request_that_is_refused_takes_no_other_along(provider: Any) -> None:
    bad = asked(2).job_id

    def answer(custom_id: str, body: dict[str, Any]) -> Any:
        if custom_id == bad:
            error = {"message": "no", "type": "invalid_request_error", "code": "invalid_value"}
            return {"status_code": 400, "request_id": "r", "body": {"error": error}}
        return provider.usual(custom_id, body)

    provider.answer = answer
    provider.release.set()
    async with working(deployment("openai", provider.url)) as engine:
        first, second, third = await asyncio.gather(*run(engine, *map(asked, (1, 2, 3))), return_exceptions=True)
    assert isinstance(first, Answer) and isinstance(third, Answer)
    assert isinstance(second, FabricError)
    assert (second.fault, second.retry) == ("caller", False)


async def test_a_batch_that_expired_brings_what_it_has(provider: Any) -> None:
    left_out = asked(2).job_id
    provider.ends_as = "expired"
    provider.answer = lambda custom_id, body: None if custom_id == left_out else provider.usual(custom_id, body)
    provider.release.set()
    async with working(deployment("openai", provider.url)) as engine:
        first, second = await asyncio.gather(*run(engine, asked(1), asked(2)), return_exceptions=True)
    assert isinstance(first, Answer)
    assert isinstance(second, FabricError)
    assert second.info.fall_back


async def test_lines_that_nobody_asked_for_or_that_come_twice_change_nothing(provider: Any) -> None:
    provider.extra_lines = [
        b'{"custom_id": "stranger", "response": {"status_code": 200, "body": {}}, "error": null}',
        b'{"custom_id": "%s", "response": {"status_code": 500, "body": {}}, "error": null}' % asked(1).job_id.encode(),
    ]
    provider.release.set()
    async with working(deployment("openai", provider.url)) as engine:
        (answer,) = await asyncio.gather(*run(engine, asked(1)))
    assert text(answer) == f"echo {asked(1).job_id}"


@pytest.mark.parametrize("kind", BOTH)
async def test_a_job_is_pulled_back_before_its_deadline_and_the_batch_called_off(kind: Kind, provider: Any) -> None:
    place = deployment(kind, provider.url, reserve_s=100.0)
    async with working(place, sweep_s=0.2, keep_s=0.1) as engine:
        late = int((time.time() + 101.5) * 1000)
        (task,) = run(engine, asked(1, deadline_ms=late))
        await reached(provider, lambda: provider.batches)
        with pytest.raises(FabricError) as raised:
            await task
        assert raised.value.info.code == "provider_batch_late"
        assert raised.value.info.fall_back
        await reached(provider, lambda: provider.cancelled)
    assert provider.cancelled == list(provider.batches)


async def test_a_cancelled_job_leaves_the_others_in_peace(provider: Any) -> None:
    async with working(deployment("openai", provider.url)) as engine:
        one, other = run(engine, asked(1), asked(2))
        await reached(provider, lambda: provider.batches)
        one.cancel()
        with pytest.raises(asyncio.CancelledError):
            await one
        provider.release.set()
        assert text(await other) == f"echo {asked(2).job_id}"
    assert provider.cancelled == []


@pytest.mark.parametrize("kind", BOTH)
async def test_a_job_whose_answer_was_lost_on_its_way_finds_it_again(kind: Kind, provider: Any) -> None:
    provider.release.set()
    async with working(deployment(kind, provider.url)) as engine:
        (first,) = await asyncio.gather(*run(engine, asked(1)))
        (again,) = await asyncio.gather(*run(engine, asked(1)))
    assert text(first) == text(again)
    assert len(provider.batches) == 1


async def test_more_than_a_batch_may_hold_goes_in_several(provider: Any) -> None:
    provider.release.set()
    async with working(deployment("openai", provider.url, max_requests=10)) as engine:
        answers = await asyncio.gather(*run(engine, *map(asked, range(25))))
    assert len(answers) == 25
    assert sorted(len(made.requests) for made in provider.batches.values()) == [5, 10, 10]


async def test_what_was_uploaded_is_deleted_at_the_end(provider: Any) -> None:
    provider.release.set()
    async with working(deployment("openai", provider.url), sweep_s=0.2, keep_s=0.1) as engine:
        await asyncio.gather(*run(engine, asked(1)))
        await reached(provider, lambda: len(provider.deleted) == 3)
    assert set(provider.files) <= set(provider.deleted)
