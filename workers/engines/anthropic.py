"""Anthropic's Messages API, spoken to as if it were OpenAI's."""

from __future__ import annotations

import logging
from typing import Literal

import orjson
from pydantic import Field

from fabric.contracts.catalog import Deployment
from fabric.contracts.errors import ConfigError, EngineUnsupported
from workers.engines.anthropic_answer import MessageFold, whole_answer
from workers.engines.anthropic_request import message_body
from workers.engines.api_failures import PROVIDER
from workers.engines.api_options import ApiOptions, options_of
from workers.engines.asking import ask_stream, ask_whole
from workers.engines.engine import Answer, Emit, Engine, Request
from workers.engines.http import Api
from workers.engines.openai import PAUSE_S, SLOTS, authorization
from workers.engines.provider_limits import Board, gate_of

log = logging.getLogger(__name__)

ANTHROPIC_URL = "https://api.anthropic.com"
#: The version of the protocol that this is written for.
VERSION = "2023-06-01"
_PATH = "/messages"


def api_root(deployment: Deployment) -> str:
    """``base_url`` is as Anthropic's own clients take it, without ``/v1``; with it is as good."""
    return (deployment.base_url or ANTHROPIC_URL).rstrip("/").removesuffix("/v1") + "/v1"


class AnthropicOptions(ApiOptions):
    #: Where the key goes: ``x-api-key``, or ``Authorization: Bearer`` for those who speak this protocol, too.
    auth: Literal["x-api-key", "bearer", "none"] = "x-api-key"
    #: The limit of an answer for which the caller sets none.
    max_tokens: int = Field(4096, ge=1)


class AnthropicEngine(Engine):
    """``board``: what the workers of this deployment know of its rate limit together."""

    def __init__(self, deployment: Deployment, board: Board | None = None) -> None:
        super().__init__(deployment)
        if not deployment.model:
            raise ConfigError(f"Deployment {deployment.name!r}: `model` is missing: the provider's name of the model.")
        self._options = options_of(deployment, AnthropicOptions)
        gate = gate_of(board)
        self._api = Api(deployment, api_root(deployment), self._options, PROVIDER, gate)

    @property
    def slots(self) -> int:
        """None while it can't be reached or its rate limit is spent: the jobs can still go elsewhere."""
        if not self._api.reachable or self._api.gate.paused_s > PAUSE_S:
            return 0
        return self.deployment.slots or SLOTS

    async def start(self) -> None:
        self._api.authorize({"anthropic-version": VERSION, **authorization(self.deployment, self._options.auth)})
        if self._options.auth != "none" and self._api.in_clear:
            log.warning("%s gets its key unencrypted at %s: use https", self._api.who, self._api.place)

    async def run(self, request: Request, emit: Emit) -> Answer:
        if request.endpoint != "/v1/chat/completions":
            raise EngineUnsupported(
                f"Anthropic's API has no {request.endpoint.removeprefix('/v1/')}.", param="endpoint"
            )
        content = orjson.dumps(
            message_body(
                request.body,
                self.deployment.model,
                max_tokens=self._options.max_tokens,
                stream=request.stream,
                defaults=self._options.body,
            )
        )
        if request.stream:
            fold = MessageFold()
            first_token_s = await ask_stream(self._api, _PATH, content, fold, emit)
            return Answer({}, fold.usage, first_token_s)
        (answer, usage), seconds = await ask_whole(self._api, _PATH, content, whole_answer)
        return Answer(answer, usage, seconds)

    async def close(self) -> None:
        await self._api.close()
