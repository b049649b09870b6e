"""The near end of the load generator: gives it plans, reads its samples."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import orjson

from benchmarks.load import Plan, Sample
from benchmarks.processes import Void, cpu_s, module


class Client:
    """One load generator, for all rounds of a benchmark."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        #: Share of one core that the generator itself used in the last run: near 1 it would be the bottleneck.
        self.busy = 0.0

    def run(self, plan: Plan) -> Sample:
        """
        Raises:
            Void: an answer wasn't a 200.
        """
        assert self._process.stdin and self._process.stdout
        before = cpu_s(self._process.pid)
        self._process.stdin.write(orjson.dumps(plan) + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise Void("the load generator died")
        sample = Sample(**orjson.loads(line))
        if sample.refused:
            raise Void(
                f"{plan.address} answered other than 200 (status: number): {sample.refused}; first: {sample.complaint}"
            )
        if not sample.answers:
            raise Void("no answer came in the time given")
        self.busy = (cpu_s(self._process.pid) - before) / (plan.warmup_s + sample.seconds)
        return sample


@contextmanager
def client() -> Iterator[Client]:
    with module("benchmarks.load", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=None) as process:
        yield Client(process)


def total(samples: Sequence[Sample]) -> Sample:
    """All rounds of one side as one."""
    return replace(
        samples[0],
        answers=sum(s.answers for s in samples),
        seconds=sum(s.seconds for s in samples),
        tokens=sum(s.tokens for s in samples),
        latencies_s=sorted(latency for s in samples for latency in s.latencies_s),
    )
