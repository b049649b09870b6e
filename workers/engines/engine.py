"""What an engine is: a place that answers one request at a time, many side by side.

``run`` is one coroutine per request on the worker's loop. Cancelling it must stop the generation in
the engine before ``CancelledError`` leaves ``run``: that is how clients that went away, cancelled
jobs and lost leases free their slot.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fabric.contracts.catalog import Deployment
from fabric.contracts.job import Endpoint, Usage

#: Takes one OpenAI stream chunk as JSON bytes (no ``data:`` prefix, no ``[DONE]``). Must be called on
#: the loop's thread, in order. Never blocks.
Emit = Callable[[bytes], None]


@dataclass(frozen=True, slots=True)
class Request:
    """One attempt. ``body`` is a validated OpenAI body without ``fabric``, ``model`` and ``stream``."""

    job_id: str
    endpoint: Endpoint
    body: dict[str, Any]
    stream: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """``body``: the whole OpenAI-shaped answer without ``id`` and ``model``; ``{}`` when streamed.

    A streamed answer's chunks went to ``emit``: each is an OpenAI chunk without ``id`` and ``model``.
    Usage is not emitted as a chunk of its own, it is returned here (the gateway writes that chunk).
    """

    body: dict[str, Any]
    usage: Usage
    first_token_s: float | None = None


class Engine(ABC):
    """One deployment's engine inside a worker process."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment

    @property
    @abstractmethod
    def slots(self) -> int:
        """Requests that run side by side at full use. Known after ``start``."""

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

    @abstractmethod
    async def close(self) -> None:
        """Stops the engine and frees what it holds. Called once, after the last ``run`` returned."""
