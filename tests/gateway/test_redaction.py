"""What the cloud sees, what the caller gets back, and what the API says of labels. The test is the cloud."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import httpx
import openai
import orjson
import pytest

from fabric.contracts.catalog import Catalog
from fabric.contracts.decision import Decision
from fabric.contracts.job import JobState
from fabric.contracts.job_seals import WorkerSeals
from fabric.contracts.secret import Secrets
from fabric.contracts.zones import WorkerKeys
from fabric.ledger import audit
from fabric.privacy import presidio
from fabric.privacy.presidio import Part
from fabric.store import Store, transitions
from fabric.store.transitions import Claimed, Dispatch, Outcome, Piece

if TYPE_CHECKING:
    from fabric.gateway import GatewaySettings
    from tests.gateway.conftest import Served

CHAT = "/v1/chat/completions"
ADA, CARD = "ada@example.com", "4111 1111 1111 1111"
TEXT = f"write to {ADA}, card {CARD}"
CLEAN = "write to <EMAIL_1>, card <CARD_1>"
CATALOG = Catalog.model_validate(
    {
        "models": [
            {
                "name": "small",
                "deployments": [
                    {"name": "home", "engine": "mock", "tier": "cpu", "capabilities": ["chat", "completions"]},
                    {"name": "away", "engine": "openai", "tier": "cloud", "model": "x", "data_policy": "zero_retention"}
                    | {"capabilities": ["chat", "completions"]},
                ],
            }
        ],
        "privacy": {
            "detectors": [
                {"entity": "secret", "raise_to": "restricted"},
                {"entity": "national_id", "raise_to": "confidential"},
            ]
        },
    }
)


@dataclass
class Cloud:
    """The way of a job to the cloud and back, step by step."""

    store: Store
    eventually: Callable[[Callable[[], Any]], Any]

    def next(self, deployment: str = "away") -> Claimed:
        tier = CATALOG.by_deployment[deployment].tier

        def taken() -> Any:
            lanes = self.store(transitions.room()).lanes
            return self.store(transitions.take([(lane.name, 1) for lane in lanes])) if lanes else None

        (job,) = self.eventually(taken)
        decision = Decision("p", "h", (), ()).dump()
        (attempt,) = self.store(transitions.dispatch([Dispatch(job.spec.id, deployment, tier, decision)]))
        (claimed,) = self.store(transitions.claim("w1", [(job.spec.id, attempt)], deployment=deployment))
        return claimed

    def say(self, job: Claimed, *pieces: str | dict[str, Any]) -> None:
        for piece in pieces:
            delta = {"content": piece} if isinstance(piece, str) else piece
            chunk = {
                "object": "chat.completion.chunk",
                "choices": [{"index": 0, "delta": delta, "finish_reason": None}],
            }
            body = SEALS.piece(job.spec, orjson.dumps({"type": "token", "chunk": chunk}))
            assert self.store(transitions.emit([Piece(job.spec.id, job.attempt, body)])) == [1]

    def answer(self, job: Claimed, message: dict[str, Any] | None = None, **fields: Any) -> None:
        result = b""
        if message is not None:
            choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": "stop", **fields}
            result = SEALS.answer(job.spec, orjson.dumps({"object": "chat.completion", "choices": [choice]}))
        assert self.store(transitions.commit([Outcome(job.spec.id, job.attempt, JobState.SUCCEEDED, result)])) == [1]


#: As the gateway's own (``conftest.py``).
SEALS = WorkerSeals(WorkerKeys.of(Secrets(["s" * 32]), ["local", "cloud"]))


def seen(job: Claimed) -> str:
    return str(orjson.loads(SEALS.request(job.spec, job.payload))["body"]["messages"][0]["content"])


@pytest.fixture
def cloud(store: Store, eventually: Any) -> Cloud:
    return Cloud(store, eventually)


@pytest.fixture
def served(settings: GatewaySettings, serve: Callable[..., Served]) -> Served:
    gateway: Served = serve(replace(settings, catalog=CATALOG))
    return gateway


@pytest.fixture
def web(served: Served) -> Iterator[httpx.Client]:
    with served.http() as client:
        yield client


@pytest.fixture
def sdk(served: Served) -> Iterator[openai.OpenAI]:
    with served.openai(max_retries=0) as client:
        yield client


def body(text: str = TEXT, privacy: str | None = "confidential", **fields: Any) -> dict[str, Any]:
    options = {"fabric": {"privacy": privacy}} if privacy else {}
    return {"model": "small", "messages": [{"role": "user", "content": text}], **options, **fields}


def asked(client: openai.OpenAI, **fields: Any) -> Any:
    request = body(**fields)
    return client.chat.completions.create(
        model="small",
        messages=request["messages"],
        stream=bool(fields.get("stream")),
        extra_body={"fabric": request["fabric"]},
    )


def submit(web: httpx.Client, **fields: Any) -> str:
    answer = web.post("/v1/jobs", json={"endpoint": CHAT, "body": body(**fields)})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def events(web: httpx.Client, job_id: str, after: int = 0) -> list[tuple[int, dict[str, Any]]]:
    frames = web.get(f"/v1/jobs/{job_id}/events", headers={"last-event-id": str(after)}).text.split("\n\n")
    parts = [frame.split("\n") for frame in frames if frame and not frame.startswith(":")]
    return [(int(number.removeprefix("id: ")), json.loads(data.removeprefix("data: "))) for number, data in parts]


def said(told: list[tuple[int, dict[str, Any]]]) -> str:
    chunks = [event["chunk"] for _, event in told if event["type"] == "token"]
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)


class TestAnswers:
    def test_the_cloud_sees_placeholders_and_the_caller_doesnt(
        self, cloud: Cloud, sdk: openai.OpenAI, meanwhile: Callable[..., Future[Any]]
    ) -> None:
        waiting = meanwhile(asked, sdk)
        job = cloud.next()
        assert seen(job) == CLEAN
        call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"to":"<EMAIL_1>"}'}}
        cloud.answer(job, {"content": "sent to <EMAIL_1>; <EMAIL_7> is unknown", "tool_calls": [call]})
        message = waiting.result().choices[0].message
        assert message.content == f"sent to {ADA}; <EMAIL_7> is unknown"
        assert message.tool_calls[0].function.arguments == '{"to":"' + ADA + '"}'

    def test_at_home_the_original_is_seen(
        self, cloud: Cloud, sdk: openai.OpenAI, meanwhile: Callable[..., Future[Any]]
    ) -> None:
        waiting = meanwhile(asked, sdk)
        job = cloud.next("home")
        assert seen(job) == TEXT
        cloud.answer(job, {"content": TEXT})
        assert waiting.result().choices[0].message.content == TEXT

    @pytest.mark.parametrize(
        "pieces", [[f"to {CLEAN} <"], list(f"to {CLEAN} <"), ["to write to <EMA", "IL_1", ">, card <CARD_1", "> <"]]
    )
    def test_streams_are_restored(
        self, pieces: list[str], cloud: Cloud, sdk: openai.OpenAI, meanwhile: Callable[..., Future[Any]]
    ) -> None:
        def read() -> str:
            return "".join(chunk.choices[0].delta.content or "" for chunk in asked(sdk, stream=True) if chunk.choices)

        reading = meanwhile(read)
        job = cloud.next()
        cloud.say(job, *pieces)
        cloud.answer(job)
        assert reading.result() == f"to {TEXT} <"

    def test_the_same_key_again_gets_the_same(
        self, cloud: Cloud, web: httpx.Client, meanwhile: Callable[..., Future[Any]]
    ) -> None:
        def post() -> Any:
            return web.post(CHAT, json=body(), headers={"idempotency-key": "k"}).json()

        first = meanwhile(post)
        job = cloud.next()
        again = meanwhile(post)
        cloud.answer(job, {"content": CLEAN})
        answers = [future.result()["choices"][0]["message"]["content"] for future in (first, again, meanwhile(post))]
        assert answers == [TEXT] * 3


class TestJobs:
    def test_results_are_restored_when_they_are_read(self, cloud: Cloud, web: httpx.Client) -> None:
        job_id = submit(web)
        job = cloud.next()
        assert seen(job) == CLEAN
        cloud.answer(job, {"content": CLEAN})
        shown = web.get(f"/v1/jobs/{job_id}").json()
        assert shown["result"]["choices"][0]["message"]["content"] == TEXT
        assert (shown["privacy"], shown["redacted"], shown["entities"]) == ("confidential", True, ["card", "email"])

    def test_that_something_was_redacted_is_written_down_and_what_is_not(
        self, served: Served, cloud: Cloud, web: httpx.Client
    ) -> None:
        submit(web)
        cloud.answer(cloud.next(), {"content": CLEAN})
        served.inside.trail.flush()
        with served.ledger.reading() as connection:
            (row,) = [row.object() for row in audit.rows(connection) if row.action == "request.redacted"]
        assert row["detail"] == {"label": "confidential", "entities": ["card", "email"]}
        assert ADA not in str(row) and CARD not in str(row)

    def test_so_are_streams_put_together_and_events(self, cloud: Cloud, web: httpx.Client) -> None:
        job_id = submit(web, stream=True)
        job = cloud.next()
        cloud.say(job, "to <EM", "AIL_", "1> and <CARD_1", ">", " <EMAIL")
        cloud.answer(job)
        expected = f"to {ADA} and {CARD} <EMAIL"
        assert web.get(f"/v1/jobs/{job_id}").json()["result"]["choices"][0]["message"]["content"] == expected
        whole = events(web, job_id)
        assert said(whole) == expected
        assert whole[-1][1]["type"] == "succeeded"

    def test_a_reader_who_comes_back_gets_the_rest(self, cloud: Cloud, web: httpx.Client) -> None:
        job_id = submit(web, stream=True)
        job = cloud.next()
        cloud.say(job, "to <EM", "AIL_", "1> and <CARD_1", ">", " <EMAIL")
        cloud.answer(job)
        whole = events(web, job_id)
        last = whole[-1][0]
        for after in range(last):
            rest = [event for event in whole if event[0] > after or (event[0] == last - 1 and after == last - 1)]
            told = events(web, job_id, after)
            # What a stream still held at its end has no number of its own: it comes again.
            assert [event for event in told if event[0] > after] == [event for event in rest if event[0] > after]


class TestReaders:
    """Presidio takes its time. Here it is played: what it finds is its own tests' matter."""

    @pytest.fixture
    def slow(self, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
        """Texts are read when it is set."""
        go = threading.Event()

        def reads(text: str) -> Iterator[Part]:
            assert go.wait(60)
            if (start := text.find("Ada Lovelace")) >= 0:
                yield Part(start, start + 12, "PERSON")

        monkeypatch.setattr(presidio, "load", lambda *_: reads)
        return go

    def test_others_are_served_while_texts_are_read(
        self,
        slow: threading.Event,
        cloud: Cloud,
        settings: GatewaySettings,
        serve: Callable[..., Served],
        meanwhile: Callable[..., Future[Any]],
    ) -> None:
        rules = {
            "detectors": [{"entity": "person", "presidio": "PERSON", "raise_to": "confidential"}],
            "presidio": {"models": {"en": "played"}, "timeout_s": 60},
        }
        catalog = Catalog.model_validate(CATALOG.model_dump() | {"privacy": rules})
        gateway = serve(replace(settings, catalog=catalog))
        with gateway.http() as web, gateway.openai(max_retries=0) as sdk:
            waiting = [meanwhile(asked, sdk, text="by Ada Lovelace") for _ in range(8)]
            for _ in range(3):
                assert web.get("/health/live").status_code == 200
            assert not any(one.done() for one in waiting)
            slow.set()
            for _ in waiting:
                job = cloud.next()
                assert (seen(job), job.spec.entities) == ("by <PERSON_1>", ("person",))
                cloud.answer(job, {"content": "said <PERSON_1>"})
            assert {one.result().choices[0].message.content for one in waiting} == {"said Ada Lovelace"}


class TestLabels:
    SECRET = "use AKIAIOSFODNN7EXAMPLE"

    def test_what_raised_it_is_shown(self, web: httpx.Client, store: Store) -> None:
        job_id = submit(web, text=self.SECRET, privacy=None)
        shown = web.get(f"/v1/jobs/{job_id}").json()
        assert (shown["privacy"], shown["raised_from"], shown["entities"]) == ("restricted", "internal", ["secret"])
        record = store.redis.hgetall(f"fabric:job:{job_id}")
        assert all(b"AKIA" not in value for value in record.values())

    def test_the_dry_run_says_the_same(self, web: httpx.Client) -> None:
        told = web.post("/v1/route", json=body(self.SECRET, None)).json()
        assert (told["privacy"], told["raised_from"], told["entities"]) == ("restricted", "internal", ["secret"])
        (out,) = [out for out in told["decision"]["eliminated"] if out["deployment"] == "away"]
        assert out["reason"] == "privacy"
        assert "raised from internal: secret found" in out["detail"]
        told = web.post("/v1/route", json=body()).json()
        assert told["redacted"] is True
        assert [place["deployment"] for place in told["decision"]["plan"]].count("away") == 1

    def test_a_find_may_raise_it_to_one_that_redacts(self, cloud: Cloud, web: httpx.Client) -> None:
        submit(web, text="ssn 536-22-1234", privacy="public")
        job = cloud.next()
        assert (job.spec.privacy, job.spec.redacted, seen(job)) == ("confidential", True, "ssn <NATIONAL_ID_1>")

    def test_no_label_is_lowered(self, web: httpx.Client) -> None:
        job_id = submit(web, text="ssn 536-22-1234", privacy="restricted")
        shown = web.get(f"/v1/jobs/{job_id}").json()
        assert (shown["privacy"], shown["raised_from"]) == ("restricted", None)

    def test_blocks_are_counted_by_label(self, served: Served, web: httpx.Client) -> None:
        for privacy in ("public", "restricted", "restricted", "confidential"):
            submit(web, text="hello", privacy=privacy)
        submit(web, text=self.SECRET, privacy="public")
        assert served.metric("fabric_label_blocks_total", label="restricted") == 3
        assert served.metric("fabric_label_blocks_total", label="public") == 0
        assert served.metric("fabric_label_blocks_total", label="confidential") == 0

    def test_a_long_text_is_searched_too(self, cloud: Cloud, web: httpx.Client) -> None:
        """Beside the loop."""
        submit(web, text="word " * 40_000 + ADA)
        assert seen(cloud.next()).endswith("word <EMAIL_1>")
