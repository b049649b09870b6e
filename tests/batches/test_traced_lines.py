"""Of a batch's lines a few are traced, whichever recorder feeds them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fabric.contracts.ids import line_job_id
from fabric.contracts.trace import Sampler
from fabric.store.transitions import Claimed, Outcome

if TYPE_CHECKING:
    from tests.batches.conftest import Desk, Worker

LINES = 300


def traces(desk: Desk, worker: Worker, line: Any, sampler: Sampler | None) -> tuple[str, dict[str, str | None]]:
    """The batch, and what of a trace came with each of its jobs."""
    found: dict[str, str | None] = {}
    reply = worker.answer

    def answer(job: Claimed) -> Outcome:
        found[job.spec.id] = job.spec.trace
        return reply(job)

    worker.answer = answer
    worker.start()
    with desk.serving(sampler=sampler):
        batch_id = desk.batch([line(f"l{n}") for n in range(LINES)])
        desk.wait(batch_id)
    return batch_id, found


def test_the_lines_that_are_traced_are_told_from_their_ids(desk: Desk, worker: Worker, line: Any) -> None:
    sampler = Sampler()
    batch_id, found = traces(desk, worker, line, sampler)
    ids = [line_job_id(batch_id, number) for number in range(1, LINES + 1)]
    assert found == {job_id: sampler.line(job_id) for job_id in ids}
    assert sum(trace is not None for trace in found.values()) < LINES / 10


def test_without_a_tracer_none_is(desk: Desk, worker: Worker, line: Any) -> None:
    _, found = traces(desk, worker, line, None)
    assert len(found) == LINES and set(found.values()) == {None}
