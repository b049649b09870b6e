"""How many requests a vLLM server should have, by what its metrics say."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workers.engines.vllm_load import KV_FULL, Load, parse_load, slots_for

METRICS = b"""\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="org/name"} 12.0
vllm:num_requests_running{engine="1",model_name="org/name"} 3.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="org/name"} 2.0
vllm:num_requests_waiting{engine="1",model_name="org/name"} 0.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 99.0
vllm:kv_cache_usage_perc{engine="0",model_name="org/name"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="org/name"} 0.5
"""

#: Examples may take long on a busy machine.
PATIENT = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
loads = st.builds(Load, st.integers(0, 2000), st.integers(0, 2000), st.floats(0, 1))
sizes = st.integers(1, 1024)


def test_engines_behind_one_server_are_added_up() -> None:
    assert parse_load(METRICS) == Load(running=15, waiting=2, kv_usage=0.5)


def test_metrics_of_older_versions() -> None:
    assert parse_load(METRICS.replace(b"kv_cache", b"gpu_cache")) == Load(15, 2, 0.5)
    assert parse_load(METRICS.replace(b"vllm:kv", b"x:kv")) == Load(15, 2, 0.0)


@pytest.mark.parametrize("metrics", [b"", b"process_open_fds 7\n", METRICS[:150], b"vllm:num_requests_running"])
def test_what_is_not_vllms_metrics_says_nothing(metrics: bytes) -> None:
    assert parse_load(metrics) is None


@PATIENT
@given(st.binary(max_size=300))
def test_no_bytes_break_the_parser(noise: bytes) -> None:
    parse_load(METRICS[:100] + noise + METRICS[100:])


@PATIENT
@given(loads, sizes)
def test_there_is_always_a_slot_and_never_more_than_configured(load: Load, configured: int) -> None:
    assert 1 <= slots_for(load, configured) <= configured


@PATIENT
@given(st.integers(0, 2000), st.floats(0, 0.8), sizes)
def test_a_server_in_which_nothing_waits_gets_all(running: int, kv_usage: float, configured: int) -> None:
    assert slots_for(Load(running, 0, kv_usage), configured) == configured


@PATIENT
@given(loads, st.integers(0, 2000), st.floats(0, 1), sizes)
def test_more_trouble_never_means_more_slots(load: Load, waiting: int, kv_usage: float, configured: int) -> None:
    worse = Load(load.running, max(load.waiting, waiting), max(load.kv_usage, kv_usage))
    assert slots_for(worse, configured) <= slots_for(load, configured)


@PATIENT
@given(st.integers(1, 2000), st.integers(1, 2000), st.floats(0, 0.94), sizes)
def test_a_short_queue_stays_where_requests_wait(running: int, waiting: int, kv_usage: float, configured: int) -> None:
    slots = slots_for(Load(running, waiting, kv_usage), configured)
    assert slots == configured or running < slots <= running * 9 / 8 + 1


@PATIENT
@given(st.integers(1, 2000), st.integers(0, 2000), st.floats(KV_FULL, 1), sizes)
def test_a_full_cache_gets_nothing_more(running: int, waiting: int, kv_usage: float, configured: int) -> None:
    assert slots_for(Load(running, waiting, kv_usage), configured) <= running


def test_first_tokens_of_all_engines_are_added_up() -> None:
    name = b"vllm:time_to_first_token_seconds"
    more = b"".join(
        name + b'_%b{engine="%d"} %d\n' % (kind, engine, value)
        for kind, engine, value in ((b"count", 0, 3), (b"count", 1, 1), (b"sum", 0, 6), (b"sum", 1, 2))
    )
    load = parse_load(METRICS + name + b'_bucket{engine="0",le="1"} 99\n' + more)
    assert load == Load(15, 2, 0.5, first_tokens=4, first_tokens_s=8.0)
    assert load.first_token_s(None) is None  # since when isn't known
    assert load.first_token_s(load) is None  # none came
    assert load.first_token_s(Load(0, 0, 0.0, 2, 3.0)) == 2.5
    assert load.first_token_s(Load(0, 0, 0.0, 900, 900.0)) is None  # it has been started again


@PATIENT
@given(loads, sizes, st.floats(0, 100))
def test_late_first_tokens_add_nothing_but_leave_a_few(load: Load, configured: int, late_s: float) -> None:
    slots = slots_for(load, configured, first_token_s=late_s, goal_s=10.0)
    if late_s <= 10:
        assert slots == slots_for(load, configured)
    else:
        assert 1 <= slots <= max(1, load.running, configured // 8)
