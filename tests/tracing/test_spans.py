from __future__ import annotations

from dataclasses import replace

import orjson

from fabric.contracts.completion import Completion, EarlierAttempt
from fabric.contracts.errors import ProviderAuth
from fabric.contracts.job import JobSpec, Measures, Usage
from fabric.contracts.trace import batch_context, span_id
from fabric.tracing import Span, job_spans

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SPEC = JobSpec(
    "job_a",
    "/v1/chat/completions",
    "assistant",
    key_id="CANARY",
    tags=("CANARY",),
    custom_id="CANARY",
    headers=(("x", "CANARY"),),
    max_output_tokens=9,
    trace=f"00-{TRACE}-{SPAN}-01",
)
MEASURES = Measures(0.01, 0.5, 0.2, Usage(12, 3, 4), 0.001, served_model="small", finish_reasons=("stop",))
REFUSED = orjson.loads(orjson.dumps(ProviderAuth("CANARY").info))
EARLIER = EarlierAttempt(1, "hosted", "cloud", "w1", "exhausted", 1_100, 1_200, 1_300, Measures(), REFUSED)
DONE = Completion(
    "1-1", SPEC, "succeeded", 2, "local", "cpu", "w2", 1_000, 1_400, 1_500, 2_500, MEASURES, b"CANARY", None, (EARLIER,)
)
ENGINES = {"hosted": "openai", "local": "llamacpp"}


def named(spans: list[Span], name: str) -> list[Span]:
    return [span for span in spans if span.name == name]


def test_a_job_is_one_span_with_its_stages_and_attempts_side_by_side() -> None:
    spans = job_spans(DONE, ENGINES)
    job = spans[0]
    assert job.name == "fabric.job" and job.parent is not None and job.parent.span_id == SPAN
    assert [name for name, _ in job.events] == ["accepted", "decided", "decided", "committed"]
    assert {span.parent for span in spans[1:]} == {job.context} and {s.context.trace_id for s in spans} == {TRACE}
    assert [(s.start_ns // 10**6, s.end_ns // 10**6) for s in named(spans, "fabric.queued")] == [
        (1000, 1100),
        (1300, 1400),
    ]
    first, second = named(spans, "chat assistant")
    assert first.error == ProviderAuth.code
    assert first.attributes["fabric.tier"] == "cloud" and second.attributes["fabric.attempt"] == 2
    assert second.context.span_id == span_id("job_a", "run", 2) and second.error is None
    assert second.events == (("first_token", 1_500_000_000 + 210_000_000),)


def test_attributes_follow_the_conventions() -> None:
    run = named(job_spans(DONE, ENGINES), "chat assistant")[1]
    assert run.kind == "client"
    wanted = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "llamacpp",
        "gen_ai.request.model": "assistant",
        "gen_ai.response.model": "small",
        "gen_ai.usage.input_tokens": 12,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.usage.cache_read.input_tokens": 4,
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.request.max_tokens": 9,
    }
    assert wanted.items() <= run.attributes.items()


def test_nothing_that_a_caller_or_a_provider_wrote_is_in_a_span() -> None:
    odd = replace(EARLIER, error={**REFUSED, "code": "CANARY: your prompt was"})
    assert "CANARY" not in repr(job_spans(replace(DONE, earlier=(odd,)), ENGINES))


def test_a_job_that_isnt_traced_has_no_spans() -> None:
    assert job_spans(replace(DONE, spec=replace(SPEC, trace=None)), ENGINES) == []
    assert job_spans(replace(DONE, attempt=-1), ENGINES) == []


def test_after_a_replay_only_what_is_new_is_told() -> None:
    parked = replace(EARLIER, outcome="dead")
    spans = job_spans(replace(DONE, earlier=(parked,)), ENGINES)
    assert [span.attributes["fabric.attempt"] for span in named(spans, "chat assistant")] == [2]
    assert spans[0].start_ns == 1_300_000_000
    before = replace(DONE, state="dead", attempt=1, earlier=(), error=orjson.dumps(REFUSED))
    assert job_spans(before, ENGINES)[0].context != spans[0].context


def test_a_line_is_linked_to_its_batch() -> None:
    line = replace(DONE, spec=replace(SPEC, batch_id="batch_b", line_no=7))
    job = job_spans(line, ENGINES)[0]
    assert job.parent is None and job.links == (batch_context("batch_b"),)


def test_a_job_that_never_ran_has_waited() -> None:
    waited = replace(
        DONE, state="expired", attempt=0, earlier=(), dispatched_ms=None, claimed_ms=None, deployment=None, error=None
    )
    job, queued = job_spans(waited, ENGINES)
    assert job.error == "expired" and (queued.name, queued.end_ns) == ("fabric.queued", 2_500_000_000)
