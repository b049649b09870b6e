"""Rules: what happens to requests that a condition is true of. Values only.

A rule speaks at the door (``deny``, ``shadow``, a priority or a deadline that it sets), where a job is placed
(``require``, ``prefer``, ``canary``, a policy that it sets), or at both. At either moment the first rule that
matches and has something to say there is the one that counts.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

from fabric.contracts.terms import Priority, Tier

#: Headers that rules may read. Those that carry secrets are none of them.
HeaderName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,62}$")]
SECRET_HEADERS = frozenset(
    ("authorization", "proxy-authorization", "cookie", "x-api-key", "api-key", "idempotency-key"),
)
#: Characters of a header that reach a rule; a longer one is cut.
HEADER_CHARS = 256


def _as_list(given: Any) -> Any:
    return [given] if isinstance(given, str) else given


def _no_secrets(names: tuple[str, ...]) -> tuple[str, ...]:
    """
    Raises:
        ValueError: one of the headers carries a secret: it would stay with the job.
    """
    if secret := sorted(SECRET_HEADERS.intersection(names)):
        raise ValueError(f"`{secret[0]}` carries a secret, which rules may not read")
    return names


def _known_zone(name: str) -> str:
    """
    Raises:
        ValueError: there is no such time zone.
    """
    try:
        ZoneInfo(name)
    except (ValueError, OSError, ZoneInfoNotFoundError):
        raise ValueError("use a time zone's name, such as `Europe/Berlin` or `UTC`") from None
    return name


RuleHeaders = Annotated[tuple[HeaderName, ...], AfterValidator(_no_secrets)]
ZoneName = Annotated[str, AfterValidator(_known_zone)]


class _Value(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Where(_Value):
    """Deployments: those of all that is said here. Each may be one name or a list."""

    tier: Annotated[tuple[Tier, ...] | None, BeforeValidator(_as_list)] = Field(None, min_length=1)
    region: Annotated[tuple[str, ...] | None, BeforeValidator(_as_list)] = Field(None, min_length=1)
    deployment: Annotated[tuple[str, ...] | None, BeforeValidator(_as_list)] = Field(None, min_length=1)

    @model_validator(mode="after")
    def _somewhere(self) -> Where:
        if self.tier is None and self.region is None and self.deployment is None:
            raise ValueError("say at least one of `tier`, `region` and `deployment`")
        return self

    def holds(self, tier: Tier, region: str, deployment: str) -> bool:
        return (
            (self.tier is None or tier in self.tier)
            and (self.region is None or region in self.region)
            and (self.deployment is None or deployment in self.deployment)
        )

    def __str__(self) -> str:
        said = (("tier", self.tier), ("region", self.region), ("deployment", self.deployment))
        return ", ".join(f"{name} {' or '.join(names)}" for name, names in said if names)


class Change(_Value):
    """What a rule sets in place of what the request says."""

    policy: str | None = None
    priority: Priority | None = None
    #: Seconds from the request's arrival. A request's own deadline stays where it is earlier.
    deadline_s: float | None = Field(None, gt=0, le=2_592_000)

    @model_validator(mode="after")
    def _something(self) -> Change:
        if self.policy is None and self.priority is None and self.deadline_s is None:
            raise ValueError("set at least one of `policy`, `priority` and `deadline_s`")
        return self


class Share(_Value):
    """A deployment, and how large a part of the matching jobs is meant."""

    deployment: str
    weight: float = Field(gt=0, le=1)


_ACTIONS = ("`allow`", "`deny`", "`require`", "`prefer`", "`set`", "`canary`", "`shadow`")


class Rule(_Value):
    name: str = Field("", max_length=64)
    #: An expression over the request (``fabric.contracts.condition``). ``None``: always.
    when: str | None = Field(None, min_length=1, max_length=4096)
    #: Nothing more is asked of the request: no rule below counts.
    allow: Literal[True] | None = None
    #: The request is refused with this sentence.
    deny: str | None = Field(None, min_length=1, max_length=500)
    require: Where | None = None
    prefer: Where | None = None
    set: Change | None = None
    #: The share of jobs that goes there first; the others go there last.
    canary: Share | None = None
    #: The share of jobs, labelled ``public`` only, that runs there a second time, unanswered.
    shadow: Share | None = None

    @model_validator(mode="after")
    def _does_something(self) -> Rule:
        changes = [name for name in ("require", "prefer", "set", "canary", "shadow") if getattr(self, name) is not None]
        ends = [name for name in ("allow", "deny") if getattr(self, name) is not None]
        if not changes and not ends:
            raise ValueError(f"the rule does nothing: give it one of {', '.join(_ACTIONS)}")
        if len(ends) + bool(changes) > 1:
            raise ValueError(f"`{ends[0]}` stands alone; it can't go with `{[*ends[1:], *changes][0]}`")
        return self

    @property
    def at_the_door(self) -> bool:
        """Whether it has something to say when a request comes."""
        sets = self.set is not None and (self.set.priority is not None or self.set.deadline_s is not None)
        return bool(self.allow or self.deny or self.shadow or sets)

    @property
    def at_placing(self) -> bool:
        """Whether it has something to say when a job is placed."""
        sets = self.set is not None and self.set.policy is not None
        return bool(self.allow or self.require or self.prefer or self.canary or sets)
