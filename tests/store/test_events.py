"""``emit``, ``watch`` and what every other transition tells: the log of a job, and who hears it live."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import orjson

from fabric.contracts.job import JobState
from fabric.store import Store, reads, transitions
from fabric.store.transitions import Piece

if TYPE_CHECKING:
    from tests.store.conftest import Ear, Jobs

GATEWAY = reads.gateway_channel("g1")
TOKEN = b'{"type":"token","chunk":{}}'


def emit(store: Store, job: str, *bodies: bytes, attempt: int = 1) -> list[int]:
    return store(transitions.emit([Piece(job, attempt, body) for body in bodies]))


class TestLog:
    def test_a_jobs_way_is_written_down(self, jobs: Jobs) -> None:
        job = jobs.ended()
        assert jobs.event_types(job) == ["queued", "dispatched", "running", "succeeded"]

    def test_so_are_its_detours(self, jobs: Jobs, store: Store) -> None:
        job = jobs.dispatched()
        store(transitions.recall([(job, 1)]))
        jobs.run_again(job)
        jobs.fail(job)
        store(transitions.cancel([job]))
        detours = ["requeued", "dispatched", "running", "requeued", "cancelled"]
        assert jobs.event_types(job) == ["queued", "dispatched", *detours]

    def test_each_event_says_when_and_what(self, jobs: Jobs) -> None:
        _, dispatched, running, failed = jobs.events(jobs.ended(JobState.FAILED, worker="w1"))
        assert dispatched == {"type": "dispatched", "number": 1, "tier": "cpu", "deployment": "small-cpu"} | {
            "at": dispatched["at"]
        }
        assert running == {"type": "running", "number": 1, "at": running["at"]}
        attempt = failed["attempt"]
        assert (attempt["number"], attempt["worker"], attempt["outcome"]) == (1, "w1", "failed")
        assert attempt["error"]["code"] == "engine_error"
        assert attempt["ended_ms"] == failed["at"]
        assert failed["accepted_ms"] <= attempt["dispatched_ms"] <= attempt["claimed_ms"] <= failed["at"]

    def test_a_job_that_was_never_sent_ends_without_a_deployment(self, jobs: Jobs) -> None:
        job = jobs.taken()
        jobs.reject(job)
        attempt = jobs.events(job)[-1]["attempt"]
        assert (attempt["number"], attempt["deployment"], attempt["worker"]) == (0, None, None)

    def test_a_batch_line_logs_nothing_and_tells_nobody(
        self, jobs: Jobs, store: Store, listen: Callable[[str], Ear]
    ) -> None:
        ear = listen(GATEWAY)
        job = jobs.quiet(watcher=GATEWAY)
        jobs.run_again(job)
        emit(store, job, TOKEN)
        jobs.commit(job)
        assert jobs.events(job) == []
        assert ear.silent()


class TestLive:
    def test_the_watcher_hears_every_event_with_its_number(self, jobs: Jobs, listen: Callable[[str], Ear]) -> None:
        ear = listen(GATEWAY)
        job = jobs.ended(watcher=GATEWAY)
        messages = ear.heard(3)
        assert [(m[0], int(m[1])) for m in messages] == [(job, 2), (job, 3), (job, 4)]
        assert [orjson.loads(m[2]) for m in messages] == jobs.events(job)[1:]

    def test_the_result_comes_with_the_end_and_stays_out_of_the_log(
        self, jobs: Jobs, store: Store, listen: Callable[[str], Ear]
    ) -> None:
        ear = listen(GATEWAY)
        job = jobs.running(watcher=GATEWAY)
        jobs.commit(job, result=b'{"answer":1}')
        *_, last = ear.heard(3)
        assert last[3:] == ['{"answer":1}']
        assert b"answer" not in b"".join(store.redis.lrange(f"fabric:events:{job}", 0, -1))

    def test_an_end_without_a_result_has_an_empty_one(
        self, jobs: Jobs, store: Store, listen: Callable[[str], Ear]
    ) -> None:
        ear = listen(GATEWAY)
        job = jobs.queued(watcher=GATEWAY)
        store(transitions.cancel([job]))
        (message,) = ear.heard(1)
        assert message[3:] == [""]

    def test_nobody_hears_what_was_refused(self, jobs: Jobs, store: Store, listen: Callable[[str], Ear]) -> None:
        job = jobs.ended(watcher=GATEWAY)
        ear = listen(GATEWAY)
        jobs.commit(job)
        jobs.claim(job)
        jobs.fail(job)
        emit(store, job, TOKEN)
        store(transitions.recall([(job, 1)]))
        assert ear.silent()


class TestEmit:
    def test_pieces_come_in_order_after_what_happened_before(
        self, jobs: Jobs, store: Store, listen: Callable[[str], Ear]
    ) -> None:
        ear = listen(GATEWAY)
        job = jobs.running(watcher=GATEWAY, stream=True)
        bodies = [b'{"type":"token","n":%d}' % n for n in range(5)]
        assert emit(store, job, *bodies) == [1] * 5
        assert store.redis.lrange(f"fabric:events:{job}", 3, -1) == bodies
        assert [message[1:] for message in ear.heard(7)[2:]] == [
            [str(n), body.decode()] for n, body in enumerate(bodies, start=4)
        ]

    def test_an_attempt_that_is_over_is_refused(self, jobs: Jobs, store: Store) -> None:
        ended, again, waiting = jobs.ended(), jobs.running(), jobs.queued()
        jobs.fail(again)
        jobs.run_again(again)
        pieces = [Piece(ended, 1, TOKEN), Piece(again, 1, TOKEN), Piece(again, 2, TOKEN), Piece(waiting, 0, TOKEN)]
        assert store(transitions.emit([*pieces, Piece("job_unknown", 1, TOKEN)])) == [0, 0, 1, 0, 0]
        assert "token" not in jobs.event_types(ended) + jobs.event_types(waiting)
        assert store.redis.exists("fabric:events:job_unknown") == 0

    def test_a_call_sent_again_repeats_nothing(self, jobs: Jobs, store: Store) -> None:
        one, other = jobs.running(stream=True), jobs.running(stream=True)
        command = transitions.emit([Piece(one, 1, TOKEN), Piece(other, 1, TOKEN), Piece(one, 1, TOKEN)])
        assert [store(command), store(command)] == [[1, 1, 1], [1, 1, 1]]
        assert jobs.event_types(one).count("token") == 2
        assert jobs.event_types(other).count("token") == 1

    def test_the_same_words_in_another_call_are_said_again(self, jobs: Jobs, store: Store) -> None:
        job = jobs.running(stream=True)
        emit(store, job, TOKEN)
        emit(store, job, TOKEN)
        assert jobs.event_types(job).count("token") == 2


class TestWatch:
    def test_it_tells_what_happened_and_then_what_happens(
        self, jobs: Jobs, store: Store, listen: Callable[[str], Ear]
    ) -> None:
        ear = listen(GATEWAY)
        job = jobs.running()
        watched = store(transitions.watch(job, GATEWAY))
        assert watched is not None
        assert watched.state is JobState.RUNNING
        assert [orjson.loads(body) for body in watched.events] == jobs.events(job)
        jobs.commit(job)
        assert [message[1] for message in ear.heard(1)] == ["4"]

    def test_it_tells_from_the_number_that_was_asked_for(self, jobs: Jobs, store: Store) -> None:
        job = jobs.ended()
        watched = store(transitions.watch(job, GATEWAY, first=3))
        assert watched is not None
        assert [orjson.loads(body)["type"] for body in watched.events] == ["running", "succeeded"]
        beyond = store(transitions.watch(job, GATEWAY, first=9))
        assert beyond is not None
        assert beyond.events == []

    def test_twice_on_a_channel_is_once(self, jobs: Jobs, store: Store, listen: Callable[[str], Ear]) -> None:
        ear = listen(GATEWAY)
        job = jobs.queued(watcher=GATEWAY)
        store(transitions.watch(job, GATEWAY))
        store(transitions.cancel([job]))
        ear.heard(1)
        assert ear.silent()

    def test_many_may_watch(self, jobs: Jobs, store: Store, listen: Callable[[str], Ear]) -> None:
        ears = [listen(reads.gateway_channel(g)) for g in ("g1", "g11", "g2")]
        job = jobs.queued()
        for gateway in ("g11", "g1", "g2"):
            store(transitions.watch(job, reads.gateway_channel(gateway)))
        store(transitions.cancel([job]))
        assert len({tuple(ear.heard(1)[0]) for ear in ears}) == 1

    def test_an_unknown_job_cannot_be_watched(self, jobs: Jobs, store: Store) -> None:
        assert store(transitions.watch("job_unknown", GATEWAY)) is None
        assert store.redis.keys("fabric:job:*") == []

    def test_watching_an_ended_job_does_not_keep_it(self, jobs: Jobs, store: Store) -> None:
        job = jobs.ended()
        store(transitions.watch(job, GATEWAY))
        assert jobs.ttl_s(f"job:{job}") > 0


def test_who_watches_and_how_much_there_was_to_see(jobs: Jobs, store: Store) -> None:
    alone, watched = jobs.queued(), jobs.running(watcher=GATEWAY)
    store(transitions.watch(watched, reads.gateway_channel("g2")))
    assert store(reads.watchers(alone)) == store(reads.watchers("job_unknown")) == []
    assert store(reads.watchers(watched)) == [GATEWAY, reads.gateway_channel("g2")]
    assert [store(reads.event_count(job)) for job in (alone, watched, "job_unknown")] == [1, 3, 0]
    assert [orjson.loads(body)["type"] for body in store(reads.events(watched))] == ["queued", "dispatched", "running"]
