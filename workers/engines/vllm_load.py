"""What a vLLM server feels, from its ``/metrics``, and how many requests it should have because of it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

#: Part of the KV cache in use from which on nothing is added: close to full, vLLM evicts running requests
#: and computes them again.
KV_FULL = 0.95
#: Part of the KV cache from which on little is added.
KV_TIGHT = 0.85
#: Requests that may wait in vLLM for one that runs: so many that no place in its batch stays empty until
#: the next heartbeat, so few that the others can still go elsewhere.
_QUEUE = 1 / 8

_RUNNING = b"vllm:num_requests_running"
_WAITING = b"vllm:num_requests_waiting"
#: Its name, and the one that it had until vLLM 0.10.
_KV = (b"vllm:kv_cache_usage_perc", b"vllm:gpu_cache_usage_perc")


@dataclass(frozen=True, slots=True)
class Load:
    """``kv_usage`` is a share: 0 to 1."""

    running: int
    waiting: int
    kv_usage: float


def parse_load(metrics: bytes) -> Load | None:
    """From Prometheus' text format; ``None`` where it isn't vLLM's. Several engines behind one server
    (data parallel) are added up; the fullest KV cache counts."""
    running = _values(metrics, _RUNNING)
    waiting = _values(metrics, _WAITING)
    if not running or not waiting:
        return None
    kv = max((value for name in _KV for value in _values(metrics, name)), default=0.0)
    return Load(int(sum(running)), int(sum(waiting)), kv)


def slots_for(load: Load, configured: int) -> int:
    """Requests that the server should hold: all ``configured`` while nothing waits in it, else what it runs
    and a short queue; without the queue when its KV cache is nearly full. Never less than 1: an empty
    server starts."""
    queue = int(load.running * _QUEUE) + 1
    if load.kv_usage >= KV_FULL:
        wanted = load.running
    elif load.waiting > 0 or load.kv_usage >= KV_TIGHT:
        wanted = load.running + queue
    else:
        wanted = configured
    return max(1, min(configured, wanted))


def _values(metrics: bytes, name: bytes) -> list[float]:
    """The samples of one metric. Lines are ``name{labels} value``."""
    found = []
    at = metrics.find(name)
    while at >= 0:
        end = metrics.find(b"\n", at)
        line = metrics[at : end if end >= 0 else len(metrics)]
        if (at == 0 or metrics[at - 1 : at] == b"\n") and line[len(name) : len(name) + 1] in (b"{", b" "):
            try:
                found.append(float(line.rpartition(b"}")[2].split()[0] if b"}" in line else line.split()[1]))
            except (ValueError, IndexError):
                pass
        at = metrics.find(name, at + len(name))
    return [value for value in found if 0 <= value < float("inf")]
