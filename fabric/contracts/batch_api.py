"""How a provider's batch API is used: work that may wait a day, for about half the price. Values only."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel, ConfigDict, Field

#: Engines whose provider has a batch API, and the engines that speak it.
BATCH_ENGINES: Final = {"openai": "openai_batch", "anthropic": "anthropic_batch"}
WAITING_ENGINES: Final = frozenset(BATCH_ENGINES.values())
#: The part by which providers' batches are cheaper where nobody says otherwise.
USUAL_DISCOUNT = 0.5


class BatchApi(BaseModel):
    """``batch_api`` of a deployment. Seconds, requests, bytes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    #: How long the first request waits for others. Longer makes fewer, larger provider batches.
    gather_s: float = Field(10.0, ge=0, le=3600, allow_inf_nan=False)
    #: Between two looks at a provider batch; the pauses grow to five times that. Shorter brings answers home
    #: sooner and asks more often.
    poll_s: float = Field(30.0, gt=0, le=3600, allow_inf_nan=False)
    #: Of one provider batch. OpenAI takes 50,000 requests and 200 MB, Anthropic 100,000 and 256 MB; what is
    #: uploaded lies in the worker's memory.
    max_requests: int = Field(10_000, ge=1, le=50_000)
    max_bytes: int = Field(50_000_000, ge=1024, le=200_000_000)
    #: Jobs that one worker has at the provider.
    slots: int = Field(10_000, ge=1, le=50_000)
    #: How long a provider batch takes, until jobs have shown it.
    expected_s: float = Field(3600.0, gt=0, le=86_400, allow_inf_nan=False)
    #: Before its deadline a job is pulled back so early that the next candidate can still answer it.
    reserve_s: float = Field(300.0, ge=0, le=86_400, allow_inf_nan=False)
