"""When a job would start, say its first token and be done at a deployment. Pure.

finish = wait + prefill + decode + end
wait    = the way to a worker, learned, and jobs that go first / (slots / mean seconds of a job in the engine)
prefill = line over the prompt's tokens, learned; usual for the tier before that
decode  = expected tokens x seconds per token, both learned
end     = until the outcome is kept, learned
"""

from __future__ import annotations

from math import fsum, inf
from typing import NamedTuple

from fabric.contracts.catalog import Deployment, Tier
from fabric.contracts.experience import Experience, Pace
from fabric.contracts.job import JobSpec
from fabric.routing.cost import most_output_tokens
from fabric.routing.world import World

#: What is usual where nothing has been measured: a small model on a few cores, one on a GPU, a hosted API.
PRIORS: dict[Tier, Pace] = {
    "cpu": Pace(0, 0, 10.0, base_s=0.1, per_prompt_token_s=0.01, per_output_token_s=0.1, first_tokens=1),
    "gpu": Pace(0, 0, 5.0, base_s=0.05, per_prompt_token_s=0.0003, per_output_token_s=0.02, first_tokens=1),
    "cloud": Pace(0, 0, 4.0, base_s=0.6, per_prompt_token_s=0.0001, per_output_token_s=0.015, first_tokens=1),
}
#: Tokens of an answer where none has been measured.
PRIOR_OUTPUT_TOKENS = 256
#: Jobs after which a mean counts as measured. More are surer, and longer in coming.
ENOUGH_SAMPLES = 5
#: Age at which measurements no longer eliminate anybody. A deployment that gets no jobs because it was slow
#: once would otherwise never get to show that it is quick again.
FRESH_MS = 300_000


class Forecast(NamedTuple):
    """Seconds from now. ``None``: nobody works there, or (first token) the engine never says."""

    wait_s: float | None
    first_token_s: float | None
    finish_s: float | None
    service_s: float  #: in the engine alone, workers or not
    output_tokens: float
    measured: bool  #: rests on enough recent jobs, and not on what is usual


def predict(spec: JobSpec, deployment: Deployment, world: World, ahead_s: float = 0.0) -> Forecast:
    """``ahead_s``: seconds until the backlog before this job has been handed out (``backlog_ahead_s``)."""
    experience = world.experience
    pace = experience.paces.get((spec.endpoint, deployment.name))
    measured = pace is not None and pace.samples >= ENOUGH_SAMPLES and world.now_ms - pace.updated_ms <= FRESH_MS
    if pace is None:
        pace = usual(deployment)
    output = expected_output(spec, experience, most_output_tokens(spec, deployment))
    if spec.endpoint != "/v1/embeddings":
        length = experience.lengths.get((spec.endpoint, spec.model))
        measured = measured and length is not None and length.samples >= ENOUGH_SAMPLES
    prefill_s = pace.base_s + pace.per_prompt_token_s * spec.prompt_tokens
    # A provider's batch comes home whole: what counts is how long the last ones took, not the answer's length.
    service_s = pace.engine_s if deployment.waits else prefill_s + pace.per_output_token_s * output
    state = world.deployments.get(deployment.name)
    if state is None or not state.slots:
        return Forecast(None, None, None, service_s, output, measured)
    before = state.busy + 1 - state.slots
    if before > 1 and spec.priority == "interactive" and spec.model in world.filled:
        before = 1  # at the worker's gate it goes before all that isn't running yet
    wait_s = ahead_s + pace.queue_s + (before * pace.engine_s / state.slots if before > 0 else 0.0)
    first_token_s = wait_s + prefill_s if pace.first_tokens and not deployment.waits else None
    return Forecast(wait_s, first_token_s, wait_s + service_s + pace.end_s, service_s, output, measured)


#: A job that takes longer than this share of jobs like it is late.
LATE_SHARE = 0.95


def late_after_s(spec: JobSpec, deployment: Deployment, world: World) -> float | None:
    """Seconds from now after which a job that is sent there is later than 19 of 20 would be; ``None`` where too little
    has been measured, or nobody works there. A stream is late when it hasn't begun by then."""
    seen = predict(spec, deployment, world)
    pace = world.experience.paces.get((spec.endpoint, deployment.name))
    if spec.stream:
        known = pace is not None and pace.first_tokens >= ENOUGH_SAMPLES and seen.measured
        # How much first tokens differ isn't learned.
        return seen.first_token_s * 2 if known and seen.first_token_s is not None else None
    if seen.finish_s is None or not seen.measured or pace is None:
        return None
    longer = longer_s(spec, deployment, world, seen)
    return seen.finish_s * 2 if longer is None else seen.finish_s + longer


def longer_s(spec: JobSpec, deployment: Deployment, world: World, seen: Forecast) -> float | None:
    """By how many seconds 19 of 20 take longer there at most than is expected; ``None``: nothing is known of that."""
    pace = world.experience.paces.get((spec.endpoint, deployment.name))
    length = world.experience.lengths.get((spec.endpoint, spec.model))
    if pace is None or length is None or length.survival is None:
        return None
    longest = length.survival.quantile(LATE_SHARE, most_output_tokens(spec, deployment)) * spec.answers
    return max(0.0, longest - seen.output_tokens) * pace.per_output_token_s


def expected_output(spec: JobSpec, experience: Experience, most: float = inf) -> float:
    """Tokens of all its answers together, as long as answers have been lately. ``most``: of one answer."""
    if spec.endpoint == "/v1/embeddings":
        return 0.0
    if spec.max_output_tokens is not None:
        most = min(most, spec.max_output_tokens)
    length = experience.lengths.get((spec.endpoint, spec.model))
    return (min(PRIOR_OUTPUT_TOKENS, most) if length is None else length.expected(most)) * spec.answers


def backlog_ahead_s(spec: JobSpec, deployments: tuple[Deployment, ...], world: World) -> float:
    """Seconds until the model's deployments have taken what waits in the backlog before this job."""
    ahead = world.ahead(spec.model, spec.priority)
    if not ahead:
        return 0.0
    rate = fsum(  # exact, so that the order of the deployments can't show
        world.of(d.name).slots / engine_s
        for d in deployments
        if d.takes(spec.priority) and (engine_s := _engine_s(spec, d, world.experience)) > 0
    )
    return ahead / rate if rate else 0.0


def _engine_s(spec: JobSpec, deployment: Deployment, experience: Experience) -> float:
    pace = experience.paces.get((spec.endpoint, deployment.name))
    return (pace or usual(deployment)).engine_s


def usual(deployment: Deployment) -> Pace:
    """What is taken for granted of a place where nothing has been measured."""
    if deployment.waits and deployment.batch_api is not None:
        expected_s = deployment.batch_api.expected_s
        return Pace(0, 0, expected_s, base_s=expected_s, per_prompt_token_s=0.0, per_output_token_s=0.0)
    return PRIORS[deployment.tier]
