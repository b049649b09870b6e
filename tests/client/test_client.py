"""Both clients against a server on loopback."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fabric import AsyncClient, Client
from fabric.contracts import errors

ODD = "one\u2028two"
LINE = '{"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {}}\n'


def succeeded(text: str) -> dict[str, Any]:
    choices = [{"index": 0, "message": {"role": "assistant", "content": text}}]
    attempts = [{"number": 1, "tier": "cpu", "deployment": "m-cpu", "outcome": "succeeded"}]
    return {"id": "job_1", "state": "succeeded", "attempts": attempts, "result": {"choices": choices}, "cost_usd": 0.1}


def a_job_of_five_events(api: Any) -> None:
    tokens = [{"type": "token", "chunk": {"choices": [{"delta": {"content": c}}]}} for c in ("a", ODD)]
    api.events = [{"type": "queued"}, {"type": "running"}, *tokens, {"type": "succeeded"}]
    api.job = {"id": "job_1", "state": "queued"}


def test_chat_gives_the_answer_and_where_it_ran(api: Any) -> None:
    with Client() as client:
        answer = client.chat("hello", temperature=0, fabric={"privacy": "restricted"})
    assert (answer.text, answer.usage["total_tokens"]) == ("hello", 2)
    assert (answer.job_id, answer.tier, answer.deployment) == ("job_1", "cpu", "m-cpu")
    assert (answer.attempts, answer.cost_usd, answer.queue_ms) == (1, 0.5, 3)
    [(headers, body)] = api.calls("POST", "/v1/chat/completions")
    assert body == {
        "model": "assistant",
        "messages": [{"role": "user", "content": "hello"}],
        "temperature": 0,
        "fabric": {"privacy": "restricted"},
    }
    assert headers["idempotency-key"].startswith("client-")
    assert "authorization" not in headers


def test_messages_and_the_model_go_as_they_are_given(api: Any) -> None:
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    with Client(api_key="secret") as client:
        client.chat(messages, model="other")
    [(headers, body)] = api.calls("POST", "/v1/chat/completions")
    assert (body["messages"], body["model"], headers["authorization"]) == (messages, "other", "Bearer secret")
    assert api.calls("GET", "/v1/models") == []


def test_route_asks_without_running_anything(api: Any) -> None:
    with Client() as client:
        routed = client.route("hello", max_tokens=5, fabric={"privacy": "restricted"})
        assert client.route({"input": "x"}, model="other") == routed
    assert (routed["object"], routed["chosen"]["deployment"]) == ("route", "m-cpu")
    (headers, body), (_, embeddings) = api.calls("POST", "/v1/route")
    assert body == {
        "model": "assistant",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 5,
        "fabric": {"privacy": "restricted"},
    }
    assert embeddings == {"model": "other", "input": "x"}
    assert "idempotency-key" not in headers
    assert {path for _, path, _, _ in api.seen} == {"/v1/models", "/v1/route"}


async def test_workers(api: Any) -> None:
    api.workers = [{"id": "worker_1"}]
    with Client() as client:
        assert client.workers() == api.workers
    async with AsyncClient() as asked:
        assert await asked.workers() == api.workers


async def test_asyncio_route(api: Any) -> None:
    async with AsyncClient() as client:
        assert (await client.route("hello"))["chosen"]["tier"] == "cpu"


def test_a_stream_yields_its_pieces_whatever_is_in_them(api: Any) -> None:
    with Client() as client:
        assert [piece.text for piece in client.chat(f"a {ODD} b", stream=True)] == ["a", ODD, "b"]


async def test_asyncio_chat_and_stream(api: Any) -> None:
    async with AsyncClient() as client:
        assert (await client.chat("hello")).text == "hello"
        assert [piece.text async for piece in await client.chat(f"a {ODD}", stream=True)] == ["a", ODD]


def test_a_stream_that_breaks_is_an_error(api: Any) -> None:
    with Client() as client:
        with pytest.raises(errors.StreamBroken, match="ended before the answer did"):
            list(client.chat("break off", stream=True))
        with pytest.raises(errors.StreamBroken, match="The engine broke"):
            list(client.chat("break down", stream=True))


def test_errors_are_those_that_the_fabric_raised(api: Any) -> None:
    with Client() as client, pytest.raises(errors.ContextOverflow) as caught:
        client.chat("fail")
    assert (caught.value.message, caught.value.param) == ("The prompt is too long.", "messages")


def told(code: str, message: str = "No.") -> dict[str, Any]:
    return {"error": {"message": message, "type": "t", "param": None, "code": code}}


@pytest.mark.parametrize(
    ("status", "body", "kind", "code"),
    [
        (401, told("invalid_api_key"), errors.NotAuthenticated, "invalid_api_key"),
        (404, told("model_not_found"), errors.ModelNotFound, "model_not_found"),
        (400, told("a_newer_code"), errors.InvalidRequest, "a_newer_code"),
        (418, told("teapot"), errors.FabricError, "teapot"),
        (502, {"detail": "some proxy"}, errors.EngineError, "engine_error"),
    ],
)
def test_an_error_finds_its_class(api: Any, status: int, body: dict[str, Any], kind: type, code: str) -> None:
    api.refusals = [(status, body, {})]
    with Client() as client, pytest.raises(errors.FabricError) as caught:
        client.chat("hello", model="m")
    assert (type(caught.value), caught.value.error_code) == (kind, code)


def test_passing_refusals_are_tried_again_with_the_same_key(api: Any) -> None:
    api.refusals = [(503, told("unavailable"), {}), (429, told("backlog_full"), {"retry-after": "0.3"})]
    started = time.monotonic()
    with Client() as client:
        assert client.chat("hello", model="m").text == "hello"
    assert time.monotonic() - started > 0.3
    keys = {headers["idempotency-key"] for headers, _ in api.calls("POST", "/v1/chat/completions")}
    assert len(api.calls("POST", "/v1/chat/completions")) == 3
    assert len(keys) == 1


def test_a_fabric_that_is_not_there_is_named() -> None:
    with Client("http://127.0.0.1:9", retries=0) as client, pytest.raises(errors.Unavailable) as caught:
        client.chat("hello")
    assert caught.value.error_code == "unreachable"
    assert "http://127.0.0.1:9: nothing listens there" in caught.value.message


def test_submit_hands_over_a_job(api: Any) -> None:
    with Client() as client:
        job = client.submit({"model": "m", "input": "x", "fabric": {"tags": ["t"]}}, endpoint="/v1/embeddings")
    assert job.id == "job_1"
    [(_, body)] = api.calls("POST", "/v1/jobs")
    assert body == {"endpoint": "/v1/embeddings", "body": {"model": "m", "input": "x"}, "fabric": {"tags": ["t"]}}


def test_events_come_once_each_across_broken_connections(api: Any) -> None:
    a_job_of_five_events(api)
    api.breaks = [0, 2, 4]
    with Client() as client:
        events = list(client.job("job_1").events())
    assert [event.number for event in events] == [1, 2, 3, 4, 5]
    assert "".join(event.text for event in events) == f"a{ODD}"
    asked = [headers.get("last-event-id") for headers, _ in api.calls("GET", "/v1/jobs/job_1/events")]
    assert asked == [None, None, "2", "4"]


async def test_asyncio_events_come_once_each_across_broken_connections(api: Any) -> None:
    a_job_of_five_events(api)
    api.breaks = [1, 3]
    async with AsyncClient() as client:
        job = await client.submit("hello")
        assert [event.number async for event in job.events()] == [1, 2, 3, 4, 5]


def test_a_result_waits_for_the_last_event(api: Any) -> None:
    a_job_of_five_events(api)
    with Client() as client:
        job = client.submit("hello")
        for event in job.events():
            if event.final:
                api.job = succeeded("done")
        answer = job.result(timeout=5)
    assert (answer.text, answer.tier, answer.attempts, answer.cost_usd) == ("done", "cpu", 1, 0.1)


def test_a_result_that_takes_too_long_is_a_timeout_and_the_job_goes_on(api: Any) -> None:
    api.events, api.job = [{"type": "wait"}], {"id": "job_1", "state": "running"}
    started = time.monotonic()
    with Client() as client, pytest.raises(TimeoutError, match="job_1 hasn't ended yet"):
        client.job("job_1").result(timeout=0.5)
    assert 0.4 < time.monotonic() - started < 2
    assert api.calls("POST", "/v1/jobs/job_1/cancel") == []


async def test_asyncio_result_times_out_and_fails_as_the_blocking_one(api: Any) -> None:
    api.events, api.job = [{"type": "wait"}], {"id": "job_1", "state": "running"}
    async with AsyncClient() as client:
        with pytest.raises(TimeoutError):
            await client.job("job_1").result(timeout=0.3)
        api.job = {"id": "job_1", "state": "failed", "error": {"message": "Lost.", "code": "worker_lost"}}
        with pytest.raises(errors.WorkerLost, match=r"Lost\."):
            await client.job("job_1").result()


def test_a_cancelled_job_has_no_result(api: Any) -> None:
    api.job = {"id": "job_1", "state": "cancelled", "error": {"message": "Cancelled.", "code": "cancelled"}}
    with Client() as client:
        assert client.job("job_1").cancel()["state"] == "cancelled"
        with pytest.raises(errors.Cancelled):
            client.job("job_1").result()


def test_map_answers_every_request_and_keeps_errors_apart(api: Any) -> None:
    requests = ["zero", "fail", {"messages": [{"role": "user", "content": "two"}], "model": "other"}, "three"]
    with Client() as client:
        mapped = {m.index: m for m in client.map(requests, concurrency=2)}
    assert {index: m.text for index, m in mapped.items() if not m.error} == {0: "zero", 2: "two", 3: "three"}
    assert isinstance(mapped[1].error, errors.ContextOverflow)
    with pytest.raises(errors.ContextOverflow):
        _ = mapped[1].text


def test_map_reads_no_further_than_it_must(api: Any) -> None:
    read: list[int] = []

    def requests() -> Any:
        for number in range(1_000):
            read.append(number)
            yield str(number)

    with Client() as client:
        results = client.map(requests(), concurrency=4)
        for _ in range(3):
            next(results)
        results.close()  # type: ignore[attr-defined]
    assert len(read) <= 3 + 4


async def test_asyncio_map_answers_every_request(api: Any) -> None:
    async with AsyncClient() as client:
        mapped = [m async for m in client.map([str(n) for n in range(20)], concurrency=8)]
    assert sorted(m.index for m in mapped) == list(range(20))
    assert all(m.text == str(m.index) for m in mapped)


def test_a_batch_runs_from_file_to_results(api: Any, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text("not json\n" + LINE)
    seen: list[tuple[int, int | None]] = []
    with Client() as client:
        batch = client.batch(path)
        batch.wait(timeout=10, progress=lambda done, total: seen.append((done, total)))
        results = list(batch.results())
    assert seen[-1] == (3, 3)
    assert [result["custom_id"] for result in results] == ["a", "b", "c"]
    assert results[0]["text"] == ODD
    [(_, body)] = api.calls("POST", "/v1/batches")
    assert body == {"input_file_id": "file_in", "endpoint": "/v1/embeddings", "completion_window": "24h"}
    assert LINE.encode() in api.files["file_in"]


async def test_asyncio_batch_runs_from_file_to_results(api: Any, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(LINE)
    async with AsyncClient() as client:
        batch = await (await client.batch(path)).wait(timeout=10)
        assert [result["custom_id"] async for result in batch.results()] == ["a", "b", "c"]


def test_a_wait_for_a_batch_survives_a_gap(api: Any) -> None:
    with Client(retries=0) as client:
        batch = client.get_batch("batch_1")
        api.refusals = [(503, told("unavailable"), {})] * 2
        assert batch.wait(timeout=10).status == "completed"


def test_lists_come_in_pages(api: Any) -> None:
    with Client() as client:
        assert len(list(client.jobs())) == 250
        assert [job["id"] for job in client.jobs(limit=101)][-1] == "job_100"
    assert len(api.calls("GET", "/v1/jobs")) == 3 + 2


def test_importing_the_package_brings_no_http_client() -> None:
    code = "import sys, fabric; assert 'httpx' not in sys.modules; fabric.Client; assert 'httpx' in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
