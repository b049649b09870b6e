"""The catalogue: logical models, the deployments behind them, and what each label permits.

Values only. ``fabric.settings`` reads them from ``fabric.yaml`` and the environment.
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fabric.contracts.batch_api import BATCH_ENGINES, WAITING_ENGINES, BatchApi
from fabric.contracts.breaker import Breaker
from fabric.contracts.budget import Budget
from fabric.contracts.detector import Detector, PresidioSettings
from fabric.contracts.limits import TenantLimits
from fabric.contracts.policy import BUILT_IN, DEFAULT_POLICY, Policy, PolicyName
from fabric.contracts.rule import Rule, RuleHeaders, ZoneName
from fabric.contracts.terms import HOME_ZONE, SCHEDULER, TenantName, zone_of
from fabric.contracts.terms import PRIVACY_LABELS as PRIVACY_LABELS
from fabric.contracts.terms import TIERS as TIERS
from fabric.contracts.terms import Priority as Priority
from fabric.contracts.terms import Privacy as Privacy
from fabric.contracts.terms import Tier as Tier

DataPolicy = Literal["none", "no_training", "zero_retention"]
#: From weaker to stronger.
DATA_POLICIES: tuple[DataPolicy, ...] = ("none", "no_training", "zero_retention")
Capability = Literal["chat", "completions", "embeddings", "tools", "json_schema", "grammar", "vision", "logprobs"]
EngineName = Literal["llamacpp", "vllm", "openai", "anthropic", "mock", "openai_batch", "anthropic_batch"]


#: Engines without an address, and so without a key. (``mock`` plays any other.)
_IN_THE_WORKER = frozenset(("llamacpp",))
#: What a provider's API has no word for.
_LACKING: dict[str, frozenset[str]] = dict.fromkeys(
    ("anthropic", "anthropic_batch"), frozenset(("completions", "embeddings", "grammar", "logprobs"))
)


class _Value(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LongContext(_Value):
    """The price of a request with more input than ``above_input_tokens``: of all its tokens."""

    above_input_tokens: int = Field(ge=1)
    input_per_million: float = Field(ge=0, allow_inf_nan=False)
    output_per_million: float = Field(ge=0, allow_inf_nan=False)
    cached_input_per_million: float | None = Field(None, ge=0, allow_inf_nan=False)


class Price(_Value):
    """US dollars per million tokens, and per hour of the machine for deployments that run on the operator's own."""

    input_per_million: float = Field(0.0, ge=0, allow_inf_nan=False)
    output_per_million: float = Field(0.0, ge=0, allow_inf_nan=False)
    #: Input that the provider has read before; without it, the price of any other input.
    cached_input_per_million: float | None = Field(None, ge=0, allow_inf_nan=False)
    #: The part by which work through a provider's batch API is cheaper.
    batch_discount: float = Field(0.0, ge=0, le=1)
    #: The highest threshold that a request is above counts.
    long_context: tuple[LongContext, ...] = ()
    #: A whole worker's; a request pays for the time that it holds one of the worker's slots.
    machine_usd_per_hour: float = Field(0.0, ge=0, allow_inf_nan=False)
    #: Where the figures are from, kept with each cost. Of no price at all it is empty.
    version: str = Field("", max_length=64)

    @model_validator(mode="after")
    def _thresholds_differ(self) -> Price:
        thresholds = [step.above_input_tokens for step in self.long_context]
        if len(set(thresholds)) != len(thresholds):
            raise ValueError("two steps of `long_context` have the same `above_input_tokens`")
        return self


class TierCost(_Value):
    """What an hour of a worker of one tier costs, busy or idle."""

    watts: float = Field(0.0, ge=0, allow_inf_nan=False)  #: drawn under load
    usd_per_kwh: float = Field(0.0, ge=0, allow_inf_nan=False)
    #: Amortisation, rent, room: all but the power.
    usd_per_hour: float = Field(0.0, ge=0, allow_inf_nan=False)

    @property
    def machine_usd_per_hour(self) -> float:
        return self.usd_per_hour + self.watts / 1000 * self.usd_per_kwh


class Baseline(_Value):
    """What all work is compared with: a model of a provider, as the price list knows it, or a price."""

    model: str = Field(min_length=1, max_length=128)
    provider: str | None = Field(None, min_length=1, max_length=64)
    price: Price | None = None


class Deployment(_Value):
    """One place where a logical model can run."""

    name: str = Field("", pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$|^$")
    engine: EngineName
    tier: Tier
    model: str = ""
    base_url: str | None = None
    #: Where a hosted API's key is: the name of an environment variable, or a file (absolute, or from the
    #: worker's working directory). Never the key.
    api_key_env: str | None = Field(None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    api_key_file: str | None = Field(None, min_length=1)
    context_window: int = Field(4096, ge=16)
    slots: int | None = Field(None, ge=1, le=65536)
    capabilities: tuple[Capability, ...] = ("chat", "completions")
    price: Price = Price()
    region: str = "local"
    data_policy: DataPolicy = "none"
    #: Whose workers may read what runs there; ``local`` or ``cloud`` where none is named.
    trust_zone: str | None = Field(None, pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")
    quality: float = Field(0.5, ge=0, le=1)
    #: When it counts as sick, and how many retries it gets. What isn't set here is as for all.
    breaker: Breaker = Breaker()
    options: dict[str, Any] = Field(default_factory=dict)
    #: Send what may wait to the provider's batch API, too: a second place beside this one
    #: (``fabric.settings.batch_apis``).
    batch_api: BatchApi | None = None

    @model_validator(mode="after")
    def _has_a_batch_api(self) -> Deployment:
        if self.batch_api is not None and self.engine not in (*BATCH_ENGINES, *WAITING_ENGINES):
            raise ValueError(f"`batch_api` is for the engines {', '.join(BATCH_ENGINES)}; {self.engine} has none")
        return self

    @model_validator(mode="before")
    @classmethod
    def _can_what_its_api_can(cls, data: Any) -> Any:
        """Where nobody says what it can do."""
        if isinstance(data, dict) and data.get("engine") in _LACKING and "capabilities" not in data:
            return {**data, "capabilities": ("chat",)}
        return data

    @model_validator(mode="after")
    def _means_something(self) -> Deployment:
        for name in ("base_url", "api_key_env", "api_key_file"):
            if self.engine in _IN_THE_WORKER and getattr(self, name) is not None:
                raise ValueError(f"`{name}` means nothing to {self.engine}, which runs in the worker")
        if lacking := sorted(_LACKING.get(self.engine, frozenset()) & set(self.capabilities)):
            raise ValueError(f"`capabilities`: Anthropic's API has no {', no '.join(lacking)}")
        return self

    @model_validator(mode="after")
    def _one_source_of_the_key(self) -> Deployment:
        if self.api_key_env and self.api_key_file:
            raise ValueError("set only one of `api_key_env` and `api_key_file`")
        return self

    @property
    def zone(self) -> str:
        """The trust zone that its workers need the key of."""
        return self.trust_zone or zone_of(self.tier)

    @property
    def waits(self) -> bool:
        """Whether it is a provider's batch API: what is sent there comes home whole, in minutes or hours."""
        return self.engine in WAITING_ENGINES

    def takes(self, priority: Priority) -> bool:
        """Whether jobs of that class may run there at all."""
        return priority == "batch" or not self.waits

    @property
    def queue(self) -> str:
        """The broker queue that carries this deployment's messages."""
        return f"fabric.{self.tier}.{self.name}"


class Model(_Value):
    """A logical name and its deployments, in order of preference."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$")
    deployments: tuple[Deployment, ...] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _name_deployments(cls, data: Any) -> Any:
        """A deployment without a name gets ``<model>-<tier>``, numbered where that is taken."""
        if not isinstance(data, dict) or not isinstance(data.get("deployments"), list | tuple):
            return data
        slug = "".join(c if c.isalnum() or c in "._-" else "-" for c in str(data.get("name", "")).lower())
        taken = {d.get("name") for d in data["deployments"] if isinstance(d, dict)}
        named = []
        for deployment in data["deployments"]:
            if isinstance(deployment, dict) and not deployment.get("name"):
                base = f"{slug}-{deployment.get('tier', '')}"[:60]
                name = base
                number = 2
                while name in taken:
                    name, number = f"{base}-{number}", number + 1
                taken.add(name)
                deployment = {**deployment, "name": name}
            named.append(deployment)
        return {**data, "deployments": named}

    def taking(self, priority: Priority) -> tuple[Deployment, ...]:
        """The deployments where jobs of that class may run at all."""
        return self.deployments if priority == "batch" else self._at_once

    @cached_property
    def _at_once(self) -> tuple[Deployment, ...]:
        return tuple(deployment for deployment in self.deployments if not deployment.waits)


class PrivacyRule(_Value):
    """Where jobs of one label may run."""

    tiers: tuple[Tier, ...]
    regions: tuple[str, ...] | None = None
    data_policy: DataPolicy = "none"
    redact: bool = False
    #: Seconds that an answer can be fetched after its job has ended; ``None``: as long as the store keeps any.
    retention_s: int | None = Field(None, ge=1, le=3_600)

    def narrowed(self, other: PrivacyRule) -> PrivacyRule:
        """What both permit."""
        if other == self:
            return self
        regions = self.regions if other.regions is None else other.regions
        if self.regions is not None and other.regions is not None:
            regions = tuple(region for region in self.regions if region in other.regions)
        return PrivacyRule(
            tiers=tuple(tier for tier in self.tiers if tier in other.tiers),
            regions=regions,
            data_policy=max(self.data_policy, other.data_policy, key=DATA_POLICIES.index),
            redact=self.redact or other.redact,
            retention_s=min(filter(None, (self.retention_s, other.retention_s)), default=None),
        )


#: Of a job that came in under rules that nobody knows any more: nothing leaves the operator's machines.
AT_HOME = PrivacyRule(tiers=("cpu", "gpu"))


class PrivacyRules(_Value):
    default: Privacy = "internal"
    public: PrivacyRule = PrivacyRule(tiers=TIERS)
    internal: PrivacyRule = PrivacyRule(tiers=TIERS)
    confidential: PrivacyRule = PrivacyRule(tiers=TIERS, data_policy="zero_retention", redact=True)
    restricted: PrivacyRule = PrivacyRule(tiers=("cpu", "gpu"))
    #: What finds in texts do. Without any no label is raised; ``redact: true`` replaces what is built in.
    detectors: tuple[Detector, ...] = ()
    #: What reads texts for those detectors that name something of Presidio's.
    presidio: PresidioSettings | None = None

    @model_validator(mode="after")
    def _presidio_has_models_and_work(self) -> PrivacyRules:
        asked = [one.entity for one in self.detectors if one.presidio is not None]
        if asked and self.presidio is None:
            raise ValueError(f"detector `{asked[0]}` needs Presidio: say with which models in `privacy.presidio`")
        if self.presidio is not None and not asked:
            raise ValueError(
                "`presidio` has nothing to find: name it in a detector, as {entity: person, presidio: PERSON}"
            )
        return self

    def of(self, label: Privacy) -> PrivacyRule:
        rule: PrivacyRule = getattr(self, label)
        return rule


#: A tenant with weight 2 gets twice the tokens of one with 1.
TenantWeights = dict[TenantName, Annotated[float, Field(ge=0.01, le=1000, allow_inf_nan=False)]]


class Catalog(_Value):
    """All logical models, by name, all deployments, by name, and the rules by which jobs find their way to them."""

    models: tuple[Model, ...] = ()
    privacy: PrivacyRules = PrivacyRules()
    #: The configured ones; ``by_policy`` has the built-in ones, too.
    policies: dict[PolicyName, Policy] = Field(default_factory=dict)
    default_policy: str = DEFAULT_POLICY
    #: What hours of workers cost, by tier; a deployment's own ``machine_usd_per_hour`` goes before it.
    tiers: dict[Tier, TierCost] = Field(default_factory=dict)
    #: What savings are counted against where no hosted deployment of the same model is permitted.
    baseline: Baseline | None = None
    budgets: tuple[Budget, ...] = ()
    #: Shares of the work while several tenants wait for one model; 1 for those that aren't named.
    tenant_weights: TenantWeights = Field(default_factory=dict)
    #: How much a tenant may ask for; ``*``: each of those that aren't named.
    tenant_limits: TenantLimits = Field(default_factory=dict)
    #: In order: the first that matches counts.
    rules: tuple[Rule, ...] = ()
    #: Of the requests, for rules to read.
    rule_headers: RuleHeaders = ()
    #: Whose clock rules read.
    rule_timezone: ZoneName = "UTC"

    @model_validator(mode="after")
    def _names_are_unique(self) -> Catalog:
        models = [m.name for m in self.models]
        deployments = [d.name for m in self.models for d in m.deployments]
        for kind, names in (("model", models), ("deployment", deployments)):
            twice = sorted({n for n in names if names.count(n) > 1})
            if twice:
                raise ValueError(f"{kind} name used twice: {', '.join(twice)}; give each its own `name`")
        return self

    @model_validator(mode="after")
    def _zones_are_local_or_of_the_cloud(self) -> Catalog:
        places = [d for m in self.models for d in m.deployments]
        cloud, local = ({d.zone for d in places if (d.tier == "cloud") is of_cloud} for of_cloud in (True, False))
        if both := sorted(cloud & local):
            raise ValueError(f"trust zone `{both[0]}` has deployments of the cloud and of local tiers: make it two")
        if HOME_ZONE in cloud | local:
            raise ValueError(f"`{HOME_ZONE}` is no name for a `trust_zone`: answers are sealed for it")
        if SCHEDULER in cloud | local:
            raise ValueError(f"`{SCHEDULER}` is no name for a `trust_zone`: its keys sign messages to workers")
        return self

    @model_validator(mode="after")
    def _budgets_have_names_of_their_own(self) -> Catalog:
        names = [budget.name for budget in self.budgets]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"budget name used twice: {', '.join(twice)}")
        return self

    @model_validator(mode="after")
    def _default_policy_exists(self) -> Catalog:
        if self.default_policy not in self.by_policy:
            raise ValueError(
                f"there is no policy `{self.default_policy}`; there are {', '.join(sorted(self.by_policy))}"
            )
        return self

    @cached_property
    def by_policy(self) -> dict[str, Policy]:
        return {**BUILT_IN, **self.policies}

    @cached_property
    def by_model(self) -> dict[str, Model]:
        return {model.name: model for model in self.models}

    @cached_property
    def by_deployment(self) -> dict[str, Deployment]:
        return {d.name: d for model in self.models for d in model.deployments}

    def of_tier(self, tier: Tier) -> list[Deployment]:
        return [d for d in self.by_deployment.values() if d.tier == tier]
