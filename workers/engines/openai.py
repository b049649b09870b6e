"""Engines that speak OpenAI's API: OpenAI, Azure, OpenRouter, Groq, Together, Gemini's compatible address, …

Which one is a matter of ``base_url`` and ``options`` (``api_options.OpenAIOptions``). For Azure:
``base_url: https://NAME.openai.azure.com/openai/deployments/DEPLOYMENT``, ``options: {auth: api-key,
query: {api-version: "2024-10-21"}}``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from fabric.contracts.catalog import Deployment
from fabric.contracts.errors import ConfigError
from fabric.contracts.job import Usage
from workers.engines.api_failures import PROVIDER
from workers.engines.api_options import CompatibleOptions, OpenAIOptions, api_key, options_of
from workers.engines.asking import ask_stream, ask_whole
from workers.engines.engine import Answer, Emit, Engine, Request
from workers.engines.http import Api
from workers.engines.openai_wire import (
    StreamFold,
    choices_asked_for,
    estimated_usage,
    request_body,
    told,
    whole_answer,
    written_tokens,
)
from workers.engines.provider_limits import Board, gate_of

log = logging.getLogger(__name__)

OPENAI_URL = "https://api.openai.com/v1"
#: Requests side by side to a hosted API: it is the provider's rate limit that bounds them, not a machine.
SLOTS = 512
#: A pause of the rate limit that is shorter than this is waited out by the requests that are here.
PAUSE_S = 1.0


class OpenAICalls:
    """Requests and answers of one OpenAI-compatible API."""

    def __init__(
        self,
        model: str,
        api: Api,
        options: CompatibleOptions,
        *,
        prefix: str = "",
        ours: bool = False,
        said: Callable[[dict[str, Any]], dict[str, Any]] = lambda body: body,
    ) -> None:
        """``prefix``: what the paths have before ``/chat/completions`` and is not in the API's address. ``ours``:
        nobody else reads what the server is told, so that it may know which trace a request is of. ``said``: a body in
        the server's own words, where it has others than OpenAI."""
        self._said = said
        self._prefix = prefix
        self._model = model
        self._api = api
        self._options = options
        self._usage_told = True
        self._ours = ours

    async def run(self, request: Request, emit: Emit) -> Answer:
        """As ``Engine.run``."""
        content = self._content(request)
        traceparent = request.traceparent if self._ours else None
        path = self._prefix + request.endpoint.removeprefix("/v1")
        if request.stream:
            fold = StreamFold(request.endpoint, choices_asked_for(request.body))
            first_token_s = await ask_stream(self._api, path, content, fold, emit, traceparent)
            return Answer({}, fold.usage or self._estimate(request, fold.written_tokens), first_token_s)
        read = partial(whole_answer, request.endpoint)
        (answer, usage), seconds = await ask_whole(self._api, path, content, read, traceparent)
        if usage is None:
            usage = self._estimate(request, written_tokens(answer))
            answer["usage"] = told(usage)
        return Answer(answer, usage, seconds)

    def _content(self, request: Request) -> bytes:
        return request_body(
            self._said(request.body),
            self._model,
            stream=request.stream,
            stream_usage=self._options.stream_usage,
            max_tokens_field=self._options.max_tokens_field,
            send_reasoning=self._options.send_reasoning,
            defaults=self._options.body,
        )

    def _estimate(self, request: Request, written: int) -> Usage:
        if self._usage_told:
            self._usage_told = False
            log.warning("%s tells no usage: its tokens are estimated", self._api.who)
        return estimated_usage(request.body, written)


class OpenAIEngine(Engine):
    """A hosted API. ``board``: what the workers of this deployment know of its rate limit together."""

    def __init__(self, deployment: Deployment, board: Board | None = None) -> None:
        super().__init__(deployment)
        if not deployment.model:
            raise ConfigError(f"Deployment {deployment.name!r}: `model` is missing: the provider's name of the model.")
        options = hosted_options(deployment)
        self._auth = options.auth
        self._api = Api(deployment, deployment.base_url or OPENAI_URL, options, PROVIDER, gate_of(board))
        self._calls = OpenAICalls(deployment.model, self._api, options)

    @property
    def slots(self) -> int:
        """None while it can't be reached or its rate limit is spent: the jobs can still go elsewhere."""
        if not self._api.reachable or self._api.gate.paused_s > PAUSE_S:
            return 0
        return self.deployment.slots or SLOTS

    async def start(self) -> None:
        self._api.authorize(authorization(self.deployment, self._auth))
        if self._auth != "none" and self._api.in_clear:
            log.warning("%s gets its key unencrypted at %s: use https", self._api.who, self._api.place)

    async def run(self, request: Request, emit: Emit) -> Answer:
        return await self._calls.run(request, emit)

    async def close(self) -> None:
        await self._api.close()


def hosted_options(deployment: Deployment) -> OpenAIOptions:
    """
    Raises:
        ConfigError: an option is unknown or wrong.
    """
    options = options_of(deployment, OpenAIOptions)
    if options.max_tokens_field or (deployment.base_url or OPENAI_URL).rstrip("/") != OPENAI_URL:
        return options
    return options.model_copy(update={"max_tokens_field": "max_completion_tokens"})


def authorization(deployment: Deployment, auth: str) -> dict[str, str]:
    """The header that carries the key: ``bearer``, or the header's name; ``none``: none.

    Raises:
        ConfigError: there is no key where the deployment says, or it says nothing.
    """
    key = api_key(deployment)
    if auth == "none":
        if key is not None:
            raise ConfigError(f"Deployment {deployment.name!r} has a key, but `options.auth` is none.")
        return {}
    if key is None:
        raise ConfigError(
            f"Deployment {deployment.name!r} has no key: name the environment variable that holds it in `api_key_env`, "
            "or its file in `api_key_file` (or set `options.auth: none`)."
        )
    secret = key.get_secret_value()
    return {"authorization": f"Bearer {secret}"} if auth == "bearer" else {auth: secret}
