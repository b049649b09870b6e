"""The catalogue: logical models, the deployments behind them, and what each label permits.

Values only. ``fabric.settings`` reads them from ``fabric.yaml`` and the environment.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fabric.contracts.policy import BUILT_IN, DEFAULT_POLICY, Policy, PolicyName

Tier = Literal["cpu", "gpu", "cloud"]
TIERS: tuple[Tier, ...] = ("cpu", "gpu", "cloud")
Privacy = Literal["public", "internal", "confidential", "restricted"]
PRIVACY_LABELS: tuple[Privacy, ...] = ("public", "internal", "confidential", "restricted")
DataPolicy = Literal["none", "no_training", "zero_retention"]
Capability = Literal["chat", "completions", "embeddings", "tools", "json_schema", "vision", "logprobs"]
EngineName = Literal["llamacpp", "vllm", "openai", "anthropic", "mock"]


class _Value(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Price(_Value):
    """US dollars per million tokens."""

    input_per_million: float = Field(0.0, ge=0)
    output_per_million: float = Field(0.0, ge=0)
    cached_input_per_million: float | None = Field(None, ge=0)
    batch_discount: float = Field(0.0, ge=0, le=1)


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
    quality: float = Field(0.5, ge=0, le=1)
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_source_of_the_key(self) -> Deployment:
        if self.api_key_env and self.api_key_file:
            raise ValueError("set only one of `api_key_env` and `api_key_file`")
        return self

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


class PrivacyRule(_Value):
    """Where jobs of one label may run."""

    tiers: tuple[Tier, ...]
    regions: tuple[str, ...] | None = None
    data_policy: DataPolicy = "none"
    redact: bool = False


class PrivacyRules(_Value):
    default: Privacy = "internal"
    public: PrivacyRule = PrivacyRule(tiers=TIERS)
    internal: PrivacyRule = PrivacyRule(tiers=TIERS)
    confidential: PrivacyRule = PrivacyRule(tiers=TIERS, data_policy="zero_retention", redact=True)
    restricted: PrivacyRule = PrivacyRule(tiers=("cpu", "gpu"))

    def of(self, label: Privacy) -> PrivacyRule:
        rule: PrivacyRule = getattr(self, label)
        return rule


class Catalog(_Value):
    """All logical models, by name, all deployments, by name, and the rules by which jobs find their way to them."""

    models: tuple[Model, ...] = ()
    privacy: PrivacyRules = PrivacyRules()
    #: The configured ones; ``by_policy`` has the built-in ones, too.
    policies: dict[PolicyName, Policy] = Field(default_factory=dict)
    default_policy: str = DEFAULT_POLICY

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
