"""The main job: a stock ``openai`` client gets its answers from llama.cpp through the whole fabric."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import openai
import pydantic
import pytest

if TYPE_CHECKING:
    from tests.e2e.conftest import Fabric

EXAMPLES = Path(__file__).parents[2] / "examples"
ASK: Any = [{"role": "user", "content": "Define lantern."}]


def test_chat(real: Fabric) -> None:
    answer = real.openai().chat.completions.create(model="assistant", messages=ASK, max_tokens=24)
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == "assistant"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage
    assert answer.usage.prompt_tokens > 0
    assert 0 < answer.usage.completion_tokens <= 24


def test_an_answer_says_where_it_comes_from(real: Fabric) -> None:
    raw = real.openai().chat.completions.with_raw_response.create(model="assistant", messages=ASK, max_tokens=4)
    assert raw.headers["x-fabric-tier"] == "cpu"
    assert raw.headers["x-fabric-deployment"] == "assistant-cpu"
    assert raw.headers["x-fabric-attempts"] == "1"
    assert float(raw.headers["x-fabric-cost-usd"]) == 0
    assert int(raw.headers["x-fabric-queue-ms"]) >= 0
    with real.http() as http:
        job = http.get(f"/v1/jobs/{raw.headers['x-fabric-job-id']}").json()
    assert job["state"] == "succeeded"
    assert job["decision"]["plan"][0]["deployment"] == "assistant-cpu"


def test_a_stream_says_the_same_as_a_whole_answer(real: Fabric) -> None:
    client = real.openai()
    settings: Any = {"model": "assistant", "messages": ASK, "max_tokens": 16, "temperature": 0, "seed": 1}
    whole = client.chat.completions.create(**settings)
    chunks = list(client.chat.completions.create(**settings, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens  # type: ignore[union-attr]


def test_completions_and_embeddings(real: Fabric) -> None:
    client = real.openai()
    completion = client.completions.create(model="assistant", prompt="A lantern is", max_tokens=8)
    assert completion.choices[0].text
    vectors = client.embeddings.create(model="assistant", input=["a lantern", "a harbor"])
    assert [item.index for item in vectors.data] == [0, 1]
    assert len(vectors.data[0].embedding) == len(vectors.data[1].embedding) > 8
    assert vectors.data[0].embedding != vectors.data[1].embedding


def test_models(real: Fabric) -> None:
    client = real.openai()
    assert [model.id for model in client.models.list()] == ["assistant"]
    assert client.models.retrieve("assistant").object == "model"


def test_errors_are_the_sdks_own(real: Fabric) -> None:
    client = real.openai()
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="nobody", messages=ASK)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model="assistant", messages=ASK, temperature=9)
    assert wrong.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model="assistant", messages=[{"role": "user", "content": "lantern " * 4_000}])
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError):
        client.batches.retrieve("batch_unknown")


def test_the_example_batch(real: Fabric, tmp_path: Path) -> None:
    client = real.openai()
    with (EXAMPLES / "batch.jsonl").open("rb") as file:
        uploaded = client.files.create(file=file, purpose="batch")
    batch = client.batches.create(
        input_file_id=uploaded.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"for": "a test"}
    )
    assert batch.status in ("validating", "in_progress")
    ended = real.command("batch", "wait", batch.id)
    assert ended.returncode == 0, ended.stderr
    batch = client.batches.retrieve(batch.id)
    assert batch.status == "completed"
    assert batch.request_counts
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (200, 194, 6)
    answers = [json.loads(line) for line in client.files.content(batch.output_file_id or "").text.splitlines()]
    errors = [json.loads(line) for line in client.files.content(batch.error_file_id or "").text.splitlines()]
    assert len({line["custom_id"] for line in answers}) == len(answers) == 194
    assert all(line["response"]["body"]["choices"][0]["message"]["content"] is not None for line in answers)
    assert len(errors) == 6
    assert [batch.id for batch in client.batches.list(limit=1)]


def test_a_batch_can_be_cancelled(real: Fabric) -> None:
    client = real.openai()
    body = {"model": "assistant", "messages": ASK, "max_tokens": 400}
    lines = [
        json.dumps({"custom_id": f"c{n}", "method": "POST", "url": "/v1/chat/completions", "body": body})
        for n in range(3_000)
    ]
    uploaded = client.files.create(file=("long.jsonl", "\n".join(lines).encode()), purpose="batch")
    batch = client.batches.create(input_file_id=uploaded.id, endpoint="/v1/chat/completions", completion_window="24h")
    assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    assert real.command("batch", "wait", batch.id).returncode == 1
    batch = client.batches.retrieve(batch.id)
    assert batch.status == "cancelled"
    # The engine is free again.
    assert client.chat.completions.create(model="assistant", messages=ASK, max_tokens=2, timeout=60)


def test_structured_answers_and_log_probabilities_need_no_configuration(real: Fabric) -> None:
    class Lantern(pydantic.BaseModel):
        lit: bool
        oil: Literal["full", "low", "none"]

    parsed = real.openai().chat.completions.parse(model="assistant", messages=ASK, response_format=Lantern, seed=1)
    assert isinstance(parsed.choices[0].message.parsed, Lantern)
    answer = real.openai().chat.completions.create(
        model="assistant", messages=ASK, max_tokens=3, logprobs=True, top_logprobs=2
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content
    assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in logprobs.content)
