"""The fixed words of requests and places. Here so that all other values can use them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import StringConstraints

Tier = Literal["cpu", "gpu", "cloud"]
TIERS: tuple[Tier, ...] = ("cpu", "gpu", "cloud")
Privacy = Literal["public", "internal", "confidential", "restricted"]
#: From the one that may go everywhere to the one that may go least far.
PRIVACY_LABELS: tuple[Privacy, ...] = ("public", "internal", "confidential", "restricted")
Priority = Literal["interactive", "standard", "batch"]
#: Who goes first, first.
PRIORITIES: tuple[Priority, ...] = ("interactive", "standard", "batch")
Endpoint = Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings"]
ENDPOINTS: tuple[Endpoint, ...] = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
#: As long as names may live: in lanes, in lists and in labels of rules.
TenantName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,127}$")]
#: The trust zone of gateways and recorders: no deployment's.
HOME_ZONE = "home"
#: By what a scheduler is named among zones: no deployment's zone either.
SCHEDULER = "scheduler"


def zone_of(tier: Tier | str) -> str:
    """The trust zone of a tier's workers where none is named."""
    return "cloud" if tier == "cloud" else "local"
