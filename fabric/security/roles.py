"""The roles that processes play, and the environment that each is started with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fabric.contracts.terms import TIERS, Tier

_PREFIX = "fabric-"


@dataclass(frozen=True, slots=True)
class Role:
    """``tier``: of a worker, else empty. ``for_``: what its environment file is for, in a line."""

    name: str
    for_: str
    tier: Tier | Literal[""] = ""

    @property
    def user(self) -> str:
        """Its user, in Redis as in RabbitMQ."""
        return _PREFIX + self.name


GATEWAY = Role("gateway", "`fabric api`, and commands that are run beside it")
SCHEDULER = Role("scheduler", "`fabric scheduler`")
RECORDER = Role("recorder", "`fabric recorder`, and `fabric migrate`")
WORKERS = tuple(Role(f"worker-{tier}", f"`fabric worker {tier}`", tier) for tier in TIERS)
MONITOR = Role("monitor", "Flower and exporters: they look, and see no job")
ADMIN = Role("admin", "people: it may do anything, so no process is started with it")
ROLES = (GATEWAY, SCHEDULER, RECORDER, *WORKERS, MONITOR, ADMIN)


def env_file(role: Role, variables: Mapping[str, str]) -> str:
    """As ``docker compose``, systemd and shells read it: URLs hold nothing that any of them would take apart."""
    lines = (f"{name}={value}" for name, value in variables.items())
    return "\n".join((f"# For {role.for_}. It holds passwords.", *lines, ""))
