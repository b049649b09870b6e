"""What a batch's plan is made from: where lines may run, what each takes there, and how much room there is. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from fabric.contracts.catalog import Catalog, Deployment
from fabric.contracts.failures import NEW
from fabric.contracts.job import JobSpec
from fabric.pricing import token_usd
from fabric.routing.batch_plan import Room, Way
from fabric.routing.forecast import longer_s, predict, usual
from fabric.routing.plan import decide
from fabric.routing.world import World


class Ways(NamedTuple):
    """``ended``: no place is permitted, whatever time brings: such lines end with the reasons."""

    ways: tuple[Way, ...]
    ended: bool = False


def ways_of(spec: JobSpec, catalog: Catalog, hash_: str, world: World) -> Ways:
    """Where the lines that ``spec`` stands for may run now, by the same decision as for each of them."""
    decision = decide(spec, catalog, hash_, world, NEW)
    ways = []
    for candidate in decision.plan:
        if not candidate.live:
            continue
        deployment = catalog.by_deployment[candidate.deployment]
        seen = predict(spec, deployment, world)
        billed = token_usd(deployment.price, spec.prompt_tokens, seen.output_tokens)
        service_s = seen.service_s
        if deployment.waits and deployment.batch_api is not None:
            service_s += deployment.batch_api.reserve_s
        tail_s = 0.0 if deployment.waits else longer_s(spec, deployment, world, seen) or 0.0
        sure = candidate.measured or deployment.waits
        ways.append(Way(deployment.name, candidate.expected_cost_usd, billed, service_s, sure, tail_s))
    passing = any(out.reason in ("health", "deadline") for out in decision.eliminated)
    return Ways(tuple(ways), not decision.plan and not passing)


def rooms_of(
    deployments: Iterable[Deployment],
    endpoint: str,
    world: World,
    own: Mapping[str, int],
    own_busy_s: Mapping[str, float],
    *,
    window: int,
) -> dict[str, Room]:
    """``own``: lines of the batch that are there, or on their way; ``own_busy_s``: seconds in a slot that they and what
    goes before the batch still take there, together. ``window``: lines of all batches that there may be at once."""
    rooms = {}
    for deployment in deployments:
        state = world.of(deployment.name)
        slots = min(state.slots, window) if deployment.waits else state.slots
        if state.breaker is not None:
            slots = min(1, slots)  # a probe
        if slots <= 0:
            continue
        pace = world.experience.paces.get((endpoint, deployment.name)) or usual(deployment)
        others = max(0, state.busy - own.get(deployment.name, 0))
        busy_s = others * pace.engine_s + own_busy_s.get(deployment.name, 0.0)
        rooms[deployment.name] = Room(slots, pace.queue_s + busy_s / slots)
    return rooms
