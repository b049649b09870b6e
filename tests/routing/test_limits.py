"""What a job takes of rate limits."""

from __future__ import annotations

from typing import Any

import pytest

from fabric.contracts.catalog import Catalog
from fabric.contracts.errors import LargerThanLimit
from fabric.contracts.job import JobSpec
from fabric.contracts.limits import Limits
from fabric.routing.limits import USUAL_ANSWER, metered

ALL = Limits(requests_per_minute=60, tokens_per_minute=1_000, concurrent_jobs=4, batch_tokens=900)
NOTHING = Catalog()


def spec(**fields: Any) -> JobSpec:
    values = {"id": "job_1", "endpoint": "/v1/chat/completions", "model": "m", "tenant": "t", "key_id": "k"}
    return JobSpec(**(values | {"prompt_tokens": 100, "max_output_tokens": 50} | fields))


def test_a_request_takes_one_of_each_and_its_prompt_and_answers() -> None:
    assert metered(spec(answers=2), ALL, NOTHING) == "key:k 60 1000 4 - 1 200 1 0"


def test_an_answer_of_any_length_is_reckoned_with_as_a_usual_one() -> None:
    assert metered(spec(max_output_tokens=None), ALL, NOTHING).split()[6] == str(100 + USUAL_ANSWER)
    assert metered(spec(endpoint="/v1/embeddings", max_output_tokens=None), ALL, NOTHING).split()[6] == "100"


def test_batch_work_takes_batch_tokens_and_a_line_no_request() -> None:
    assert metered(spec(priority="batch"), ALL, NOTHING) == "key:k 60 - - 900 1 0 0 100"
    assert metered(spec(priority="batch", batch_id="b"), ALL, NOTHING) == "key:k - - - 900 0 0 0 100"
    assert metered(spec(priority="batch", batch_id="b"), Limits(requests_per_minute=1), NOTHING) == ""


def test_the_tenants_limits_count_beside_the_keys() -> None:
    catalog = Catalog.model_validate({"tenant_limits": {"t": {"concurrent_jobs": 2}, "*": {"concurrent_jobs": 1}}})
    assert metered(spec(), Limits(requests_per_minute=5), catalog).splitlines() == [
        "key:k 5 - - - 1 0 0 0",
        "tenant:t - - 2 - 0 0 1 0",
    ]
    assert metered(spec(tenant="other"), None, catalog) == "tenant:other - - 1 - 0 0 1 0"
    assert metered(spec(), None, NOTHING) == ""


def test_what_could_never_fit_is_refused_for_good() -> None:
    with pytest.raises(LargerThanLimit, match=r"1,100 tokens, and the key k may use 1,000 tokens a minute"):
        metered(spec(max_output_tokens=1_000), ALL, NOTHING)
    with pytest.raises(LargerThanLimit, match="900 batch tokens at once"):
        metered(spec(priority="batch", prompt_tokens=901), ALL, NOTHING)
