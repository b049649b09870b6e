"""A request's number says what must come back, and nothing else is taken for it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from storm.asks import FIRST_LINE, MOCK_TOKENS, Answer, answer_words, ask, asked, doomed, read_answer, slow

NUMBERS = st.integers(0, 10**7)


@given(NUMBERS)
def test_an_engine_knows_the_request_by_its_prompt(n: int) -> None:
    assert asked(ask(n).text) == (n, ask(n).label)


@given(NUMBERS)
def test_one_whole_answer_is_read(n: int) -> None:
    words = answer_words(n, "gabc1")
    assert read_answer(" ".join(words)) == Answer(n, "gabc1")


@given(NUMBERS, st.data())
def test_what_lacks_a_piece_or_has_one_twice_is_none(n: int, data: st.DataObject) -> None:
    words = answer_words(n, "gabc1")
    at = data.draw(st.integers(0, len(words) - 1))
    assert read_answer(" ".join(words[:at] + words[at + 1 :])) is None
    assert read_answer(" ".join([*words[: at + 1], *words[at:]])) is None


@given(NUMBERS)
def test_neither_is_one_in_two_voices(n: int) -> None:
    first, second = answer_words(n, "gabc1"), answer_words(n, "gdef2")
    assert read_answer(" ".join([*first[:3], *second[1:]])) is None
    assert read_answer(" ".join(first + second)) is None


@pytest.mark.parametrize(
    ("count", "found"), [(MOCK_TOKENS, Answer(None, "")), (MOCK_TOKENS - 1, None), (MOCK_TOKENS + 1, None)]
)
def test_the_mock_engines_answer_is_counted(count: int, found: Answer | None) -> None:
    assert read_answer(" ".join(["tok"] * count)) == found


def test_all_kinds_and_labels_are_asked() -> None:
    asks = [ask(n) for n in range(210)]
    assert {one.kind for one in asks} == {"chat", "stream", "job", "cancelled"}
    assert {(one.model, one.label) for one in asks} == {
        (model, label) for model in ("quick", "hosted") for label in ("public", "internal", "restricted")
    }
    assert ask(7).deadline_s is not None
    assert ask(7, line=True).kind == "line"
    assert "stream" in ask(1).body()


def test_what_fails_first_can_run_at_one_place_only_and_what_is_slow_may_be_tried_twice() -> None:
    asks = [ask(n) for n in range(2_000)]
    bound = [one for one in asks if doomed(one.n)]
    assert bound
    assert {(one.kind, one.model, one.label, one.deadline_s) for one in bound} == {
        ("job", "hosted", "restricted", None)
    }
    late = [one for one in asks if slow(one.n)]
    assert late
    assert all(one.body()["fabric"]["policy"] == "steady" and one.label != "restricted" for one in late)


def test_a_third_of_the_batches_goes_to_a_provider_but_for_what_may_not_leave() -> None:
    asks = [ask(n, line=True) for n in range(FIRST_LINE, FIRST_LINE + 300)]
    patient = [one for one in asks if one.model == "patient"]
    assert {one.n // 100 for one in patient} == {FIRST_LINE // 100}
    assert {one.label for one in patient} == {"public", "internal"}
