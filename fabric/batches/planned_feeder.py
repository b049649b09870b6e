"""Hands over lines of batches that are planned as a whole: as many of each group for each place as the plan wants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import BinaryIO, NamedTuple

from sqlalchemy import Connection

from fabric.batches.budget_wait import hopeless
from fabric.batches.cap import NoRoomYet, Purse
from fabric.batches.feeder import TURN_LINES, Call, Feeder
from fabric.batches.input_file import open_input
from fabric.contracts.job import JobSpec
from fabric.contracts.key import Permissions
from fabric.ledger import batches, lines
from fabric.ledger.batches import Batch
from fabric.ledger.lines import Outcome, WaitingLine
from fabric.store import transitions


class Due(NamedTuple):
    """``place``: a deployment, or empty for lines that no place is permitted to: they end with the reasons."""

    group_no: int
    place: str
    lines: int


class PlannedFeeder(Feeder):
    def feed_planned(
        self, batch: Batch, due: Sequence[Due], purse: Purse | None, handed_over: Callable[[Due, int], None]
    ) -> bool:
        """Hands over what is due, one turn at most; answers whether anything was. ``purse``: of a batch with a cap.
        ``handed_over`` hears how many lines of what was due the store has now.

        Raises:
            NotFound: the input file is gone.
            Unavailable: the ledger or the store is away. Lines may have been handed over: call again.
        """
        left, moved = TURN_LINES, False
        permissions = Permissions.load(batch.permissions)
        with open_input(self._ledger, self._storage, batch) as source:
            for one in due:
                waiting = self._ledger.read(lines.of_group, batch.id, one.group_no, limit=min(one.lines, left))
                fed, more = self._feed_group(batch, permissions, waiting, source, one.place, purse)
                handed_over(one, fed)
                left -= fed
                moved = moved or fed > 0
                if left <= 0 or not more:
                    break
        return moved

    def _feed_group(
        self,
        batch: Batch,
        permissions: Permissions,
        waiting: Sequence[WaitingLine],
        source: BinaryIO,
        place: str,
        purse: Purse | None,
    ) -> tuple[int, bool]:
        """How many lines went or ended, and whether the store would take more."""

        def fit(spec: JobSpec) -> tuple[JobSpec, str]:
            if purse is not None:
                return purse.fit(spec, place)
            return replace(spec, planned=place or None), ""

        call, fed, more = Call(), 0, True
        for number, line in enumerate(waiting, 1):
            try:
                self._put(call, batch, permissions, line, source, fit)
            except NoRoomYet:
                number = len(waiting)  # the others of the group are as dear
            if call.full or number == len(waiting):
                taken, more = self._take_in(batch, call, place)
                fed += taken
                if number == len(waiting) or not more:
                    break
                call = Call()
        return fed, more

    def _take_in(self, batch: Batch, call: Call, place: str) -> tuple[int, bool]:
        answers = self._store(transitions.accept(call.jobs)) if call.jobs else []
        taken = [
            (job.spec.line_no or 0, job.spec.planned or place)
            for job, answer in zip(call.jobs, answers, strict=True)
            if answer.verdict in ("accepted", "exists")
        ]
        ended = hopeless(self._store, batch, call.jobs, answers)
        bad = call.bad + ended
        if taken or bad:
            self._ledger.write(_placed, batch.id, taken, bad)
        return len(taken) + len(bad), len(taken) + len(ended) == len(call.jobs)


def _placed(connection: Connection, batch_id: str, taken: Sequence[tuple[int, str]], bad: Sequence[Outcome]) -> None:
    batches.hold(connection, [batch_id])
    lines.place(connection, batch_id, taken)
    if bad:
        lines.end(connection, batch_id, bad)
