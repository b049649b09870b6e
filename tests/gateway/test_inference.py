"""Chat completions, completions and embeddings that aren't streamed."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import openai
import pytest

from fabric.contracts.errors import ContextOverflow, DeadlineExceeded, ErrorInfo, NoEligibleDeployment, ProviderError
from fabric.contracts.job import JobState
from fabric.store import Store, reads, transitions

if TYPE_CHECKING:
    import httpx

    from fabric.gateway import GatewaySettings
    from tests.gateway.conftest import Served, Worker

CHAT = "/v1/chat/completions"
Meanwhile = Callable[..., Future[Any]]


def chat(text: str = "hi", **fields: Any) -> dict[str, Any]:
    return {"model": "small", "messages": [{"role": "user", "content": text}], **fields}


class TestAnswers:
    def test_a_conversation(self, worker: Worker, client: openai.OpenAI) -> None:
        answer = client.chat.completions.create(**chat("hello"))
        assert answer.choices[0].message.content == "hello"
        assert answer.choices[0].finish_reason == "stop"
        assert (answer.model, answer.object) == ("small", "chat.completion")
        assert answer.id.startswith("chatcmpl-")
        assert abs(answer.created - time.time()) < 600
        assert answer.usage is not None
        assert answer.usage.total_tokens == 5

    def test_a_text(self, worker: Worker, client: openai.OpenAI) -> None:
        answer = client.completions.create(model="small", prompt="once")
        assert (answer.choices[0].text, answer.object) == ("once", "text_completion")
        assert answer.id.startswith("cmpl-")

    def test_embeddings_as_numbers_and_as_base64(
        self, worker: Worker, client: openai.OpenAI, http: httpx.Client
    ) -> None:
        # The SDK asks for base64 unless it is told otherwise, and unpacks it.
        for wanted in ({}, {"encoding_format": "float"}):
            answer = client.embeddings.create(model="small", input=["a", "b"], **wanted)  # type: ignore[arg-type]
            assert [item.embedding for item in answer.data] == [[0.5, -1.0, 0.0], [0.5, -1.0, 1.0]]
            assert answer.model == "small"
        raw = http.post("/v1/embeddings", json={"model": "small", "input": "a", "encoding_format": "base64"})
        assert raw.json()["data"][0]["embedding"] == "AAAAPwAAgL8AAAAA"

    def test_it_says_where_it_comes_from(self, worker: Worker, http: httpx.Client, store: Store) -> None:
        headers = http.post(CHAT, json=chat()).headers
        job = store(reads.job(headers["x-fabric-job-id"]))
        assert job is not None
        assert job.state is JobState.SUCCEEDED
        assert headers["x-fabric-tier"] == "cpu"
        assert headers["x-fabric-deployment"] == "small-cpu"
        assert headers["x-fabric-attempts"] == "1"
        assert headers["x-fabric-cost-usd"] == "0.000002"
        assert int(headers["x-fabric-queue-ms"]) >= 0

    def test_the_second_attempt_counts(self, by_hand: Worker, http: httpx.Client, meanwhile: Meanwhile) -> None:
        waiting = meanwhile(http.post, CHAT, json=chat())
        assert by_hand.next().give_up() == "queued"
        by_hand.next().succeed()
        assert waiting.result().headers["x-fabric-attempts"] == "2"

    def test_a_model_with_a_slash_in_its_name(self, worker: Worker, client: openai.OpenAI) -> None:
        assert client.chat.completions.create(**chat() | {"model": "org/large"}).model == "org/large"

    def test_many_at_once(self, worker: Worker, http: httpx.Client, meanwhile: Meanwhile) -> None:
        waiting = [meanwhile(http.post, CHAT, json=chat(f"text {n}")) for n in range(40)]
        said = [future.result().json()["choices"][0]["message"]["content"] for future in waiting]
        assert said == [f"text {n}" for n in range(40)]

    def test_what_stands_in_the_text_stays(self, worker: Worker, client: openai.OpenAI) -> None:
        text = 'line\none\u2028two "created": "model" \\ \0 é 😀'
        assert client.chat.completions.create(**chat(text)).choices[0].message.content == text


class TestOptions:
    def test_the_fabrics_own_reach_the_job_and_not_the_engine(
        self, by_hand: Worker, client: openai.OpenAI, meanwhile: Meanwhile
    ) -> None:
        own = {"privacy": "restricted", "priority": "batch", "tags": ["a"]}
        options = {**own, "max_cost_usd": 0.5, "policy": "cheapest"}
        call = client.chat.completions.create
        waiting = meanwhile(call, **chat(temperature=0.5, extra_body={"fabric": options}))
        job = by_hand.next()
        job.succeed()
        waiting.result()
        spec = job.spec
        assert (spec.privacy, spec.priority, spec.tags) == ("restricted", "batch", ("a",))
        assert (spec.max_cost_usd, spec.policy) == (0.5, "cheapest")
        assert set(job.body) == {"messages", "temperature"}

    def test_without_them_somebody_waits(self, by_hand: Worker, http: httpx.Client, meanwhile: Meanwhile) -> None:
        waiting = meanwhile(http.post, CHAT, json=chat())
        job = by_hand.next()
        job.succeed()
        assert waiting.result().status_code == 200
        assert (job.spec.privacy, job.spec.priority, job.spec.tenant) == ("internal", "interactive", "default")


class TestRefusals:
    def test_an_unknown_model(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.NotFoundError) as refused:
            client.chat.completions.create(**chat() | {"model": "nope"})
        assert refused.value.code == "model_not_found"

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"temperature": 3}, "temperature"),
            ({"frobnicate": 1}, "frobnicate"),
            ({"store": True}, "store"),
            ({"messages": []}, "messages"),
            ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
            ({"fabric": {"priority": "urgent"}}, "fabric.priority"),
            ({"stream": False, "stream_options": {"include_usage": True}}, "stream_options"),
        ],
    )
    def test_a_wrong_field_is_named(self, client: openai.OpenAI, fields: dict[str, Any], param: str) -> None:
        with pytest.raises(openai.BadRequestError) as refused:
            client.post(CHAT.removeprefix("/v1"), body=chat() | fields, cast_to=object)
        assert refused.value.param == param

    @pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b'{"a":"\\ud800"}', b"[" * 5_000, b"\xff\xfe"])
    def test_what_is_no_json_object(self, http: httpx.Client, body: bytes) -> None:
        refused = http.post(CHAT, content=body, headers={"content-type": "application/json"})
        assert refused.status_code == 400
        assert refused.json()["error"]["code"] == "invalid_json"

    def test_deep_nesting(self, http: httpx.Client) -> None:
        schema: dict[str, Any] = {}
        for _ in range(200):
            schema = {"properties": schema}
        tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
        refused = http.post(CHAT, json=chat(tools=[tool]))
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "tools[0].function.parameters"

    @pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "application/jsonp"])
    def test_another_content_type(self, http: httpx.Client, kind: str) -> None:
        refused = http.post(CHAT, content=b"{}", headers={"content-type": kind})
        assert refused.status_code == 415
        assert refused.json()["error"]["code"] == "unsupported_media_type"

    def test_a_body_over_the_limit_by_what_it_says_and_by_what_it_is(self, http: httpx.Client) -> None:
        text = "x" * 10_000_001
        assert http.post(CHAT, json=chat(text)).status_code == 413
        pieces = (b"x" * 1_000_000 for _ in range(11))
        refused = http.post(CHAT, content=pieces, headers={"content-type": "application/json"})
        assert refused.status_code == 413
        assert refused.json()["error"]["code"] == "request_too_large"

    def test_it_leaves_no_job_behind(self, http: httpx.Client, store: Store) -> None:
        http.post(CHAT, json=chat(temperature=3))
        assert store(reads.live_count()) == 0
        assert store(reads.open_jobs("default", before_ms=None, limit=1)) == []


class TestFailures:
    @pytest.mark.parametrize(
        ("error", "kind"),
        [
            (ProviderError("The hosted API failed.").info, openai.InternalServerError),
            (ContextOverflow("Too long.", param="messages").info, openai.BadRequestError),
            (NoEligibleDeployment("Nowhere to run.").info, openai.UnprocessableEntityError),
        ],
    )
    def test_a_job_that_fails_answers_with_its_error(
        self, worker: Worker, gateway: Served, error: ErrorInfo, kind: type[openai.APIStatusError]
    ) -> None:
        worker.act = lambda job: job.fail(error)
        # With retries on: the fabric says that it has tried enough.
        with gateway.openai(max_retries=2) as client, pytest.raises(kind) as failed:
            client.chat.completions.create(**chat())
        assert failed.value.status_code == error.status
        assert (failed.value.code, failed.value.param) == (error.code, error.param)
        assert failed.value.response.headers["x-fabric-attempts"] == "1"
        assert failed.value.response.headers["x-fabric-job-id"].startswith("job_")
        assert len(failed.value.response.headers.get_list("x-should-retry")) <= 1

    def test_a_parked_job_too(self, worker: Worker, http: httpx.Client) -> None:
        worker.act = lambda job: job.park()
        failed = http.post(CHAT, json=chat())
        assert failed.status_code == 502
        assert failed.json()["error"]["type"] == "engine_error"

    def test_a_job_that_somebody_else_cancels(
        self, by_hand: Worker, http: httpx.Client, meanwhile: Meanwhile, gateway: Served
    ) -> None:
        waiting = meanwhile(http.post, CHAT, json=chat())
        job = by_hand.next()
        with gateway.http() as other:
            assert other.post(f"/v1/jobs/{job.spec.id}/cancel").json()["state"] == "running"
        assert by_hand.stopped() == job.spec.id
        job.cancelled()
        assert waiting.result().status_code == 499

    def test_faults_are_counted(self, worker: Worker, http: httpx.Client, gateway: Served) -> None:
        before = {fault: gateway.metric("fabric_errors_total", fault=fault) for fault in ("engine", "caller")}
        worker.act = lambda job: job.fail()
        http.post(CHAT, json=chat())
        http.post(CHAT, json={})
        after = {fault: gateway.metric("fabric_errors_total", fault=fault) for fault in ("engine", "caller")}
        assert after == {fault: count + 1 for fault, count in before.items()}


class TestTime:
    def test_an_answer_that_takes_too_long(
        self, by_hand: Worker, settings: GatewaySettings, serve: Callable[[GatewaySettings], Served]
    ) -> None:
        gateway = serve(replace(settings, request_timeout_s=0.2))
        with gateway.http() as http:
            late = http.post(CHAT, json=chat())
        assert late.status_code == 504
        assert late.json()["error"]["code"] == "deadline_exceeded"
        assert by_hand.stopped() == by_hand.next().spec.id

    def test_a_deadline_of_its_own_is_the_jobs(
        self, by_hand: Worker, http: httpx.Client, meanwhile: Meanwhile, store: Store
    ) -> None:
        waiting = meanwhile(http.post, CHAT, json=chat(fabric={"deadline_s": 0.3}))
        job = by_hand.next()
        assert job.spec.deadline_ms is not None
        while not store(transitions.expire()):
            time.sleep(0.01)
        assert by_hand.stopped() == job.spec.id
        job.fail(DeadlineExceeded("The deadline passed.").info, JobState.EXPIRED)
        assert waiting.result().status_code == 504
