"""Expected and worst cost: every answer that is asked for, long prompts, machine time."""

from __future__ import annotations

from typing import Any

import pytest

from fabric.contracts.catalog import Catalog, Deployment
from fabric.contracts.experience import AnswerLength, Experience
from fabric.contracts.job import JobSpec
from fabric.contracts.request import parse_request
from fabric.routing import DeploymentState, World, decide
from fabric.routing.cost import expected_cost, worst_cost
from fabric.routing.forecast import predict

PRICE = {"input_per_million": 1.0, "output_per_million": 10.0}


def deployment(**values: Any) -> Deployment:
    fixed: dict[str, Any] = {"name": "d", "engine": "mock", "tier": "cloud", "price": PRICE, "context_window": 10_000}
    return Deployment.model_validate(fixed | values)


def spec(**values: Any) -> JobSpec:
    fixed: dict[str, Any] = {"id": "job_1", "endpoint": "/v1/chat/completions", "model": "m", "prompt_tokens": 1000}
    return JobSpec(**(fixed | values))


def test_worst_is_every_answer_at_its_longest() -> None:
    assert worst_cost(spec(max_output_tokens=100), deployment()) == pytest.approx(0.001 + 0.001)
    assert worst_cost(spec(max_output_tokens=100, answers=4), deployment()) == pytest.approx(0.001 + 0.004)
    assert worst_cost(spec(), deployment()) == pytest.approx(0.001 + 0.09)  # what the window leaves
    assert worst_cost(spec(endpoint="/v1/embeddings"), deployment()) == pytest.approx(0.001)


def test_worst_knows_long_prompts_and_no_cache() -> None:
    step = {"above_input_tokens": 999, "input_per_million": 2, "output_per_million": 20}
    dear = deployment(price={**PRICE, "cached_input_per_million": 0.1, "long_context": [step]})
    assert worst_cost(spec(max_output_tokens=100), dear) == pytest.approx(0.002 + 0.002)


def test_expected_has_machine_time() -> None:
    own = deployment(tier="cpu", price={"machine_usd_per_hour": 3.6}, slots=4)
    assert expected_cost(spec(), own, 100, 10, DeploymentState()) == pytest.approx(0.0025)
    assert expected_cost(spec(), own, 100, 10, DeploymentState(2, 4, 8, 0)) == pytest.approx(0.005)
    assert worst_cost(spec(), own) == 0  # its hours cost the same, whoever uses them


def test_the_learned_length_counts_for_each_answer() -> None:
    experience = Experience(lengths={("/v1/chat/completions", "m"): AnswerLength(10, 0, 50.0)})
    world = World({"d": DeploymentState(1, 4, 8, 0)}, experience)
    one, four = (predict(spec(answers=n, max_output_tokens=80), deployment(), world).output_tokens for n in (1, 4))
    assert (one, four) == (50, 200)
    catalog = Catalog.model_validate({"models": [{"name": "m", "deployments": [deployment().model_dump()]}]})
    costs = [decide(spec(answers=n), catalog, "", world).plan[0].expected_cost_usd for n in (1, 4)]
    assert costs == pytest.approx([0.001 + 0.0005, 0.001 + 0.002])


@pytest.mark.parametrize(
    ("endpoint", "body", "answers"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}, 1),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "n": 3}, 3),
        ("/v1/completions", {"prompt": "x", "n": 2}, 2),
        ("/v1/completions", {"prompt": ["x", "y"], "n": 2}, 4),
        ("/v1/completions", {"prompt": [1, 2, 3]}, 1),
        ("/v1/completions", {"prompt": [[1, 2], [3]]}, 2),
        ("/v1/embeddings", {"input": ["x", "y"]}, 1),
    ],
)
def test_a_request_says_how_many_answers_it_wants(endpoint: str, body: dict[str, Any], answers: int) -> None:
    capable = deployment(capabilities=["chat", "completions", "embeddings"])
    catalog = Catalog.model_validate({"models": [{"name": "m", "deployments": [capable.model_dump()]}]})
    request = parse_request(endpoint, {"model": "m", **body}, catalog)
    asked = request.spec(job_id="job_1", tenant="default")
    assert asked.answers == answers
    assert JobSpec.load(asked.dump()) == asked
