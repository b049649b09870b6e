"""The batch service's small parts: lease, works, loss, window, wake."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from fabric.batches import wake, window
from fabric.batches.lease import Lease
from fabric.batches.loss import Loss
from fabric.batches.works import Works
from fabric.contracts.errors import InvalidRequest
from fabric.ledger import batches, lines
from fabric.store import Store, reads

if TYPE_CHECKING:
    from tests.batches.conftest import Desk


class TestLease:
    def test_one_holds_it(self, store: Store) -> None:
        one, two = Lease(store, term_ms=60_000), Lease(store, term_ms=60_000)
        assert one.hold()
        assert not two.hold()
        assert one.hold()

    def test_let_go_it_is_free(self, store: Store) -> None:
        one, two = Lease(store, term_ms=60_000), Lease(store, term_ms=60_000)
        one.hold()
        two.release()
        assert not two.hold()
        one.release()
        assert two.hold()

    def test_kept_it_is_renewed(self, store: Store) -> None:
        lease = Lease(store, term_ms=60_000)
        lease.hold()
        store.redis.pexpire("fabric:batches:lease", 30_000)
        lease._renewed -= 20  # seconds have passed
        assert lease.hold()
        assert store.redis.pttl("fabric:batches:lease") > 50_000

    def test_lost_with_its_store_it_is_anyones(self, store: Store) -> None:
        one, two = Lease(store, term_ms=60_000), Lease(store, term_ms=60_000)
        one.hold()
        store.redis.flushall()
        assert two.hold()
        one._renewed -= 20
        assert not one.hold()


class TestWorks:
    def test_a_step_at_a_time(self) -> None:
        done: list[str] = []

        def work(name: str, steps: int) -> Iterator[None]:
            for step in range(steps):
                done.append(f"{name}{step}")
                yield

        works = Works()
        works.begin("a", work("a", 2))
        works.begin("b", work("b", 1))
        works.begin("a", work("again", 9))
        while names := list(works):
            for name in names:
                works.step(name)
        assert done == ["a0", "b0", "a1"]

    def test_no_more_than_enough(self) -> None:
        works = Works(at_once=2)
        for name in "abc":
            works.begin(name, iter([None]))
        assert list(works) == ["a", "b"]

    def test_one_that_fails_is_over(self) -> None:
        def work() -> Iterator[None]:
            yield
            raise RuntimeError

        works = Works()
        works.begin("a", work())
        works.step("a")
        with pytest.raises(RuntimeError):
            works.step("a")
        assert list(works) == []

    def test_dropped_it_lets_go(self) -> None:
        closed: list[int] = []

        def work() -> Iterator[None]:
            try:
                yield
            finally:
                closed.append(1)

        works = Works()
        works.begin("a", work())
        works.step("a")
        works.drop("a")
        works.drop("nobody")
        assert closed == [1]


class TestLoss:
    @staticmethod
    def fed(desk: Desk, line: Any) -> str:
        """A batch whose lines are all in the store."""
        batch_id = desk.batch([line(f"c{n}") for n in range(20)])
        service = desk.service()
        desk.drive(lambda: desk.store(reads.live_count()) == 20, service.round)
        return batch_id

    @staticmethod
    def looked(desk: Desk, loss: Loss) -> bool:
        running = [b for b in desk.ledger.read(batches.unfinished) if b.status == "in_progress"]
        return loss.find(running, desk.ledger.read(lines.in_hand))

    def test_a_store_that_has_all_is_left_alone(self, desk: Desk, line: Any) -> None:
        batch_id = self.fed(desk, line)
        now = [0.0]
        loss = Loss(desk.store, desk.ledger, still_s=10, clock=lambda: now[0])
        for _ in range(5):
            now[0] += 11
            assert not self.looked(desk, loss)
        assert desk.found(batch_id).fed_until == 20

    def test_an_emptied_store_is_seen_at_once(self, desk: Desk, line: Any) -> None:
        batch_id = self.fed(desk, line)
        desk.store.redis.flushall()
        loss = Loss(desk.store, desk.ledger)
        assert self.looked(desk, loss)
        assert desk.found(batch_id).fed_until == 0
        assert not self.looked(desk, loss)

    def test_jobs_that_are_missing_are_seen_when_the_batch_stands_still(self, desk: Desk, line: Any) -> None:
        batch_id = self.fed(desk, line)
        (job, *_) = desk.store.redis.scan_iter("fabric:job:*")
        desk.store.redis.delete(job)
        now = [0.0]
        loss = Loss(desk.store, desk.ledger, still_s=10, clock=lambda: now[0])
        assert not self.looked(desk, loss)
        now[0] = 9
        assert not self.looked(desk, loss)
        now[0] = 11
        assert self.looked(desk, loss)
        assert desk.found(batch_id).fed_until == 0


class TestWindow:
    @pytest.mark.parametrize(("text", "ms"), [("24h", 86_400_000), ("90m", 5_400_000), ("30d", 2_592_000_000)])
    def test_a_time(self, text: str, ms: int) -> None:
        assert window.expires_ms(text, 1_000) == 1_000 + ms

    @pytest.mark.parametrize("text", ["", "24", "0h", "-1h", "31d", "24H", "1w", "1.5h", "99999h", "٣h"])
    def test_no_time(self, text: str) -> None:
        with pytest.raises(InvalidRequest):
            window.expires_ms(text, 0)


def test_a_call_wakes_and_one_look_answers_all(store: Store) -> None:
    assert not store(wake.wait(0.01))
    for _ in range(3):
        store(wake.wake())
    assert store(wake.wait(5))
    store(wake.clear())
    assert not store(wake.wait(0.01))
