"""What a success teaches of the next job: how quick a deployment is, how long answers get."""

from __future__ import annotations

from bisect import bisect_left
from math import inf
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.contracts.experience import LENGTH_BOUNDS, AnswerLength, fitted, survival
from fabric.contracts.job import JobState, Measures, Usage
from fabric.store import Store, reads, transitions
from fabric.store.transitions import Outcome

if TYPE_CHECKING:
    from tests.store.conftest import Jobs

CHAT = "/v1/chat/completions"


def measures(engine_s: float, tokens: int, first_s: float | None = None) -> bytes:
    return Measures(engine_s=engine_s, first_token_s=first_s, usage=Usage(5, tokens)).dump()


def succeed(jobs: Jobs, engine_s: float, tokens: int, first_s: float | None = None, **fields: Any) -> None:
    job = jobs.running(**fields)
    jobs.commit(job, JobState.SUCCEEDED, measures=measures(engine_s, tokens, first_s))


class TestASuccess:
    def test_teaches_the_pace_of_its_deployment(self, jobs: Jobs, store: Store) -> None:
        assert store(reads.experience()).paces == {}
        succeed(jobs, engine_s=2.5, tokens=20, first_s=0.5, prompt_tokens=10)
        pace = store(reads.experience()).paces[CHAT, "small-cpu"]
        assert (pace.samples, pace.first_tokens) == (1, 1)
        assert pace.engine_s == pytest.approx(2.5)
        assert pace.per_output_token_s == pytest.approx(0.1)
        assert (pace.base_s, pace.per_prompt_token_s) == (pytest.approx(0.5), 0.0)
        assert pace.updated_ms > 1_700_000_000_000

    def test_and_how_long_answers_of_its_model_get(self, jobs: Jobs, store: Store) -> None:
        for tokens in (10, 20, 30):
            succeed(jobs, engine_s=1, tokens=tokens)
        length = store(reads.experience()).lengths[CHAT, "small"]
        assert isinstance(length, AnswerLength)
        assert (length.samples, length.mean_tokens) == (3, pytest.approx(20))

    def test_an_answer_that_was_cut_counts_as_long_as_it_was_seen(self, jobs: Jobs, store: Store) -> None:
        """Of four answers two are cut at 16: those that may go on are expected to be as long as the other two."""
        for tokens, limit in ((16, 16), (16, 16), (64, None), (64, 100)):
            succeed(jobs, engine_s=1, tokens=tokens, max_output_tokens=limit)
        length = store(reads.experience()).lengths[CHAT, "small"]
        assert length.expected(16) == 16
        assert 48 <= length.expected() <= 64

    @pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 100, 4_096, 4_097, 98_304, 98_305, 10**6])
    def test_lengths_are_told_apart_by_the_same_bounds(self, jobs: Jobs, store: Store, tokens: int) -> None:
        succeed(jobs, engine_s=1, tokens=tokens)
        length = store(reads.experience()).lengths[CHAT, "small"]
        place = min(bisect_left(LENGTH_BOUNDS, tokens), len(LENGTH_BOUNDS) - 1)
        assert length.survival is not None
        assert length.survival.beyond == (1.0,) * place + (0.0,) * (len(LENGTH_BOUNDS) - place)
        assert length.survival.seen == place + 1

    def test_several_answers_of_one_job_are_as_many(self, jobs: Jobs, store: Store) -> None:
        succeed(jobs, engine_s=1, tokens=40, answers=4)
        assert store(reads.experience()).lengths[CHAT, "small"].mean_tokens == 10

    def test_old_lengths_fade(self, jobs: Jobs, store: Store) -> None:
        for tokens in (10, 1_000):
            for _ in range(80):
                running = [jobs.running() for _ in range(10)]
                many = [Outcome(j, jobs.attempts[j], JobState.SUCCEEDED, measures=measures(2, tokens)) for j in running]
                store(transitions.commit(many))
        assert store(reads.experience()).lengths[CHAT, "small"].expected() > 700

    def test_of_many_that_end_together_a_few_teach(self, jobs: Jobs, store: Store) -> None:
        running = [jobs.running() for _ in range(30)]
        many = [Outcome(j, jobs.attempts[j], JobState.SUCCEEDED, measures=measures(2, 7)) for j in running]
        assert store(transitions.commit(many)) == [1] * 30
        learned = store(reads.experience())
        assert (learned.lengths[CHAT, "small"].samples, learned.paces[CHAT, "small-cpu"].samples) == (8, 8)
        assert learned.lengths[CHAT, "small"].mean_tokens == 7

    def test_what_an_earlier_version_learned_is_learned_on(self, jobs: Jobs, store: Store) -> None:
        old = b'{"n":9,"at":1,"engine_s":1,"token_s":0.1,"first_n":0,"x":0,"y":0,"xx":0,"xy":0}'
        store.redis.hset("fabric:experience", f"pace {CHAT} small-cpu", old)
        store.redis.hset("fabric:experience", f"length {CHAT} small", b'{"n":9,"at":1,"tokens":20}')
        assert store(reads.experience()).lengths[CHAT, "small"].expected(30) == 20
        succeed(jobs, engine_s=1, tokens=10)
        learned = store(reads.experience())
        assert (learned.paces[CHAT, "small-cpu"].samples, learned.lengths[CHAT, "small"].samples) == (10, 10)

    def test_the_way_to_the_worker_and_back_is_learned_beside_the_engine(self, jobs: Jobs, store: Store) -> None:
        succeed(jobs, engine_s=0.0001, tokens=1)
        pace = store(reads.experience()).paces[CHAT, "small-cpu"]
        assert 0 <= pace.queue_s < 5
        assert 0 <= pace.end_s < 5

    def test_prompts_of_two_lengths_give_a_line(self, jobs: Jobs, store: Store) -> None:
        for prompt, first in ((100, 0.2), (1_100, 1.2)):
            succeed(jobs, engine_s=2, tokens=8, first_s=first, prompt_tokens=prompt)
        pace = store(reads.experience()).paces[CHAT, "small-cpu"]
        assert (pace.base_s, pace.per_prompt_token_s) == (pytest.approx(0.1), pytest.approx(0.001))

    def test_the_newest_count_most(self, jobs: Jobs, store: Store) -> None:
        for _ in range(20):
            succeed(jobs, engine_s=1, tokens=10)
        for _ in range(20):
            succeed(jobs, engine_s=3, tokens=10)
        pace = store(reads.experience()).paces[CHAT, "small-cpu"]
        assert 2.7 < pace.engine_s < 3
        assert pace.samples == 40

    def test_an_engine_that_does_not_say_when_its_first_token_came(self, jobs: Jobs, store: Store) -> None:
        succeed(jobs, engine_s=2, tokens=20)
        pace = store(reads.experience()).paces[CHAT, "small-cpu"]
        assert (pace.first_tokens, pace.base_s) == (0, 0)
        assert pace.per_output_token_s == pytest.approx(0.1)

    def test_embeddings_are_learned_apart_and_have_no_answer(self, jobs: Jobs, store: Store) -> None:
        succeed(jobs, engine_s=0.2, tokens=0, endpoint="/v1/embeddings", prompt_tokens=7)
        experience = store(reads.experience())
        pace = experience.paces["/v1/embeddings", "small-cpu"]
        assert (pace.base_s, pace.per_output_token_s) == (pytest.approx(0.2), 0)
        assert (set(experience.paces), experience.lengths) == ({("/v1/embeddings", "small-cpu")}, {})

    def test_many_in_one_call_teach_as_much(self, jobs: Jobs, store: Store) -> None:
        running = [jobs.running() for _ in range(5)]
        outcomes = [Outcome(j, jobs.attempts[j], JobState.SUCCEEDED, measures=measures(2, 10)) for j in running]
        assert store(transitions.commit(outcomes)) == [1] * 5
        assert store(reads.experience()).paces[CHAT, "small-cpu"].samples == 5


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.CANCELLED, JobState.DEAD])
def test_no_other_end_teaches_anything(jobs: Jobs, store: Store, state: JobState) -> None:
    jobs.commit(jobs.running(), state, measures=measures(2, 10))
    assert store(reads.experience()).paces == {}


@pytest.mark.parametrize(
    "odd", [b"", b"nonsense", b"{}", b'{"engine_s":1}', b'{"engine_s":0,"usage":{"output_tokens":1}}']
)
def test_measures_that_cannot_be_read_stop_no_outcome(jobs: Jobs, store: Store, odd: bytes) -> None:
    good, bad = jobs.running(), jobs.running()
    jobs.commit(bad, JobState.SUCCEEDED, measures=odd)
    jobs.commit(good, JobState.SUCCEEDED, measures=measures(1, 10))
    assert store(reads.state(bad)) is store(reads.state(good)) is JobState.SUCCEEDED
    assert store(reads.experience()).paces[CHAT, "small-cpu"].samples == 1


class TestTheLine:
    @given(st.floats(0, 10), st.floats(0, 0.1), st.lists(st.integers(0, 10_000), min_size=2, max_size=20))
    def test_goes_through_points_that_lie_on_one(self, base: float, slope: float, prompts: list[int]) -> None:
        ys = [base + slope * x for x in prompts]
        n = len(prompts)
        x, y = sum(prompts) / n, sum(ys) / n
        xx, xy = sum(p * p for p in prompts) / n, sum(p * q for p, q in zip(prompts, ys, strict=True)) / n
        found_base, found_slope = fitted(n, x, y, xx, xy)
        assert found_base + found_slope * x == pytest.approx(y, abs=1e-6)
        assert found_base >= 0
        assert found_slope >= 0

    def test_never_promises_an_answer_before_it_was_asked(self) -> None:
        assert fitted(2, 50, 1.0, 5_000, 100.0) == (0.0, pytest.approx(1.0 / 50))


counts = st.lists(st.integers(0, 50).map(float), min_size=len(LENGTH_BOUNDS), max_size=len(LENGTH_BOUNDS))


@given(counts, counts, st.floats(1, 200_000), st.floats(1, 200_000))
def test_an_answer_that_may_be_longer_is_never_expected_to_be_shorter(
    ended: list[float], cut: list[float], one: float, other: float
) -> None:
    length = AnswerLength(1, 0, 1.0, survival(ended, cut))
    less, more = sorted((one, other))
    assert 0 < length.expected(less) <= length.expected(more) + 1e-6
    assert length.expected(more) <= min(more, length.expected()) + 1e-6
    assert length.expected() < inf


@given(counts)
def test_without_cuts_the_shares_are_those_that_were_seen(ended: list[float]) -> None:
    ended[3] += 1
    for at, share in enumerate(survival(ended, [0.0] * len(ended)).beyond):
        assert share == pytest.approx(sum(ended[at + 1 :]) / sum(ended), abs=1e-9)
