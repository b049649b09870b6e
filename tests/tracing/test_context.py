from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.contracts.errors import ConfigError
from fabric.contracts.trace import LINES, Sampler, TraceContext, parse_traceparent, run_span, span_id

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("text", "sampled"),
    [(f"00-{TRACE}-{SPAN}-01", True), (f"00-{TRACE}-{SPAN}-00", False), (f"cc-{TRACE}-{SPAN}-03-x", True)],
)
def test_a_traceparent_is_read(text: str, sampled: bool) -> None:
    assert parse_traceparent(text) == TraceContext(TRACE, SPAN, sampled)


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-01-more",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01\n",
        f"cc-{TRACE}-{SPAN}-01-" + "x" * 300,
    ],
)
def test_what_is_none_is_ignored(text: str | None) -> None:
    assert parse_traceparent(text) is None


@given(st.text(max_size=80))
def test_any_text_is_a_context_or_none(text: str) -> None:
    context = parse_traceparent(text)
    assert context is None or parse_traceparent(context.traceparent) == context


def test_who_began_a_trace_decides_unless_the_sampler_says_otherwise() -> None:
    kept, dropped = TraceContext(TRACE, SPAN), TraceContext(TRACE, SPAN, sampled=False)
    parent_based = Sampler.of({"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"})
    begun = parent_based.begin(kept)
    assert begun is not None and begun.trace_id == TRACE and begun.span_id != SPAN
    assert parent_based.begin(dropped) is None and parent_based.begin(None) is None
    assert Sampler.of({"OTEL_TRACES_SAMPLER": "always_off"}).begin(kept) is None
    assert Sampler.of({"OTEL_TRACES_SAMPLER": "always_on"}).begin(dropped) is not None
    assert Sampler.of({}).begin(None) is not None


@pytest.mark.parametrize("environ", [("traceidratio", "2"), ("traceidratio", "half"), ("sometimes", "")])
def test_a_sampler_that_is_none_is_refused(environ: tuple[str, str]) -> None:
    with pytest.raises(ConfigError, match="OTEL_TRACES_SAMPLER"):
        Sampler.of({"OTEL_TRACES_SAMPLER": environ[0], "OTEL_TRACES_SAMPLER_ARG": environ[1]})


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 2**128 - 1))
def test_a_larger_ratio_keeps_what_a_smaller_one_does(one: float, other: float, trace: int) -> None:
    small, large = sorted((one, other))
    trace_id = f"{trace:032x}"
    assert not Sampler(small).keeps(trace_id) or Sampler(large).keeps(trace_id)


def test_of_a_batch_about_one_line_in_a_hundred_is_traced_and_always_the_same() -> None:
    jobs = [f"job_{n}" for n in range(20_000)]
    traced = [job for job in jobs if Sampler().line(job)]
    assert 0.5 * LINES < len(traced) / len(jobs) < 2 * LINES
    assert [job for job in jobs if Sampler().line(job)] == traced
    assert not any(Sampler(0.0).line(job) for job in jobs)


def test_the_engine_is_told_the_span_that_the_recorder_exports() -> None:
    told = run_span(f"00-{TRACE}-{SPAN}-01", "job_a", 2)
    assert told == f"00-{TRACE}-{span_id('job_a', 'run', 2)}-01"
    assert run_span("nonsense", "job_a", 2) is None
