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
_FIRST_TOKEN = b"vllm:time_to_first_token_seconds"
#: The part of the slots that a server keeps however late its first tokens come: a few long prompts are no load.
_FEWEST = 1 / 8


@dataclass(frozen=True, slots=True)
class Load:
    """``kv_usage`` is a share: 0 to 1. The first tokens that came since the server began: how many, and the seconds
    that they took together."""

    running: int
    waiting: int
    kv_usage: float
    first_tokens: int = 0
    first_tokens_s: float = 0.0

    def first_token_s(self, before: Load | None) -> float | None:
        """The mean of those that came since ``before``; ``None`` where none did."""
        if before is None or (count := self.first_tokens - before.first_tokens) <= 0:
            return None
        return max(0.0, self.first_tokens_s - before.first_tokens_s) / count


def parse_load(metrics: bytes) -> Load | None:
    """From Prometheus' text format; ``None`` where it isn't vLLM's. Several engines behind one server
    (data parallel) are added up; the fullest KV cache counts."""
    running = _values(metrics, _RUNNING)
    waiting = _values(metrics, _WAITING)
    if not running or not waiting:
        return None
    kv = max((value for name in _KV for value in _values(metrics, name)), default=0.0)
    count = sum(_values(metrics, _FIRST_TOKEN + b"_count"))
    seconds = sum(_values(metrics, _FIRST_TOKEN + b"_sum"))
    return Load(int(sum(running)), int(sum(waiting)), kv, int(count), seconds)


def slots_for(load: Load, configured: int, *, first_token_s: float | None = None, goal_s: float = float("inf")) -> int:
    """Requests that the server should hold: all ``configured`` while nothing waits in it, else what it runs
    and a short queue; without the queue when its KV cache is nearly full, or when first tokens come later than
    ``goal_s``. Never less than 1: an empty server starts."""
    queue = int(load.running * _QUEUE) + 1
    if load.kv_usage >= KV_FULL:
        wanted = load.running
    elif load.waiting > 0 or load.kv_usage >= KV_TIGHT:
        wanted = load.running + queue
    else:
        wanted = configured
    if first_token_s is not None and first_token_s > goal_s:
        wanted = min(wanted, max(load.running, int(configured * _FEWEST)))
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
