"""What an engine is: a place that answers one request at a time, many side by side.

``run`` is one coroutine per request on the worker's loop. Cancelling it must stop the generation in
the engine before ``CancelledError`` leaves ``run``: that is how clients that went away, cancelled
jobs and lost leases free their slot.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from fabric.contracts.catalog import Deployment
from fabric.contracts.job import Endpoint, Usage

#: Takes one OpenAI stream chunk as JSON bytes (no ``data:`` prefix, no ``[DONE]``). Must be called on
#: the loop's thread, in order. Never blocks.
Emit = Callable[[bytes], None]


#: ``loading``: its model isn't in memory yet. ``evicted``: it isn't any more, and comes when it is asked for. ``away``:
#: there is nothing that answers.
EngineState = Literal["loaded", "loading", "evicted", "away"]


@dataclass(frozen=True, slots=True)
class Request:
    """One attempt. ``body`` is a validated OpenAI body without ``fabric``, ``model`` and ``stream``."""

    job_id: str
    endpoint: Endpoint
    body: dict[str, Any]
    stream: bool
    deadline_ms: int | None = None  #: milliseconds since the epoch, on this machine's clock
    traceparent: str | None = None  #: W3C; for engines of our own only


@dataclass(frozen=True, slots=True)
class Answer:
    """``body``: the whole OpenAI-shaped answer without ``id`` and ``model``; ``{}`` when streamed.

    A streamed answer's chunks went to ``emit``: each is an OpenAI chunk without ``id`` and ``model``.
    Usage is not emitted as a chunk of its own, it is returned here (the gateway writes that chunk).
    """

    body: dict[str, Any]
    usage: Usage
    first_token_s: float | None = None
    #: Where the engine had begun before ``run`` was called: seconds since then.
    engine_s: float | None = None


class Engine(ABC):
    """One deployment's engine inside a worker process."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment

    @property
    @abstractmethod
    def slots(self) -> int:
        """Requests that run side by side at full use; none before it has started and while it is away."""

    @property
    def context(self) -> int | None:
        """Tokens of prompt and answer that it was really loaded with; ``None`` where it doesn't say."""
        return None

    @abstractmethod
    async def start(self) -> None:
        """Ready to answer when it returns.

        Raises:
            ConfigError: the deployment can't work as configured (``ModelFileError`` for its file).
            EngineUnavailable: it may work later.
        """

    @abstractmethod
    async def run(self, request: Request, emit: Emit) -> Answer:
        """
        Raises:
            FabricError: its ``retry`` and ``fall_back`` say what to do next.
        """

    @property
    def state(self) -> EngineState:
        return "loaded" if self.slots else "away"

    @property
    def waits(self) -> bool:
        """Whether a running job only waits here for work that goes on elsewhere, whatever becomes of this worker."""
        return False

    @property
    def prompts_block(self) -> bool:
        """Whether all other slots stand still while a prompt is read."""
        return False

    def let_go(self, job_id: str) -> None:  # noqa: B027 - a hook: most engines have nothing to do
        """The job's ``run`` is about to be cancelled because another worker may have the job: what was begun for it
        elsewhere is left to that one."""

    @abstractmethod
    async def close(self) -> None:
        """Stops the engine and frees what it holds. Called once, after the last ``run`` returned."""
