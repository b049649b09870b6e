"""A request on its way in: an OpenAI body, checked, with what routing needs to know of it.

>>> request = parse_request("/v1/chat/completions", body, catalog)
>>> spec = request.spec(job_id=new_id("job"), tenant="default")
>>> accept([NewJob(spec, request.payload())])
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson
from pydantic import TypeAdapter, ValidationError

from fabric.contracts.catalog import Catalog, Privacy
from fabric.contracts.errors import InvalidRequest, ModelNotFound, ModelNotPermitted
from fabric.contracts.job import ENDPOINTS, Endpoint, JobSpec, Priority
from fabric.contracts.key import EVERYTHING, Permissions
from fabric.contracts.openai import (
    UNSUPPORTED,
    ChatCompletionRequest,
    CompletionRequest,
    EmbeddingRequest,
    FabricOptions,
)
from fabric.contracts.refusal import refusal
from fabric.contracts.tokens import estimate_tokens

__all__ = ["FabricOptions", "InferenceRequest", "json_object", "parse_request"]

_ADAPTERS: dict[str, TypeAdapter[ChatCompletionRequest | CompletionRequest | EmbeddingRequest]] = {
    "/v1/chat/completions": TypeAdapter(ChatCompletionRequest),
    "/v1/completions": TypeAdapter(CompletionRequest),
    "/v1/embeddings": TypeAdapter(EmbeddingRequest),
}
#: What a deployment must be able to do for an endpoint.
CAPABILITY = {"/v1/chat/completions": "chat", "/v1/completions": "completions", "/v1/embeddings": "embeddings"}

#: The fabric's own business, and fields that are only accepted where they change nothing.
_NOT_FOR_ENGINES = frozenset(
    ("fabric", "model", "stream", "stream_options", "store", "service_tier", "modalities", "echo", "suffix", "best_of")
)
_NO_OPTIONS = FabricOptions()
#: What a chat template adds to a message.
_TOKENS_PER_MESSAGE = 4
_TOKENS_PER_IMAGE = 768


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    """``body`` goes to the engine: as the caller wrote it, without nulls and without what is said elsewhere here."""

    endpoint: Endpoint
    model: str
    body: dict[str, Any]
    options: FabricOptions
    stream: bool
    include_usage: bool
    needs: tuple[str, ...]  #: capabilities that a deployment must have
    prompt_tokens: int  #: estimate
    max_output_tokens: int | None
    permissions: Permissions = EVERYTHING  #: of the key that asks

    def spec(
        self,
        *,
        job_id: str,
        tenant: str,
        key_id: str | None = None,
        batch_id: str | None = None,
        line_no: int | None = None,
        custom_id: str | None = None,
        deadline_ms: int | None = None,
        accepted_under: str | None = None,
        default_privacy: Privacy = "internal",
        default_priority: Priority = "interactive",
    ) -> JobSpec:
        """``deadline_ms`` (epoch) bounds the caller's own ``deadline_s``, which counts from now."""
        options, permissions = self.options, self.permissions
        deadlines = [] if deadline_ms is None else [deadline_ms]
        if options.deadline_s is not None:
            deadlines.append(int((time.time() + options.deadline_s) * 1000))
        return JobSpec(
            id=job_id,
            endpoint=self.endpoint,
            model=self.model,
            tenant=tenant,
            key_id=key_id,
            privacy=permissions.label(options.privacy or default_privacy),
            priority=options.priority or default_priority,
            policy=options.policy,
            deadline_ms=min(deadlines, default=None),
            max_cost_usd=options.max_cost_usd,
            tags=tuple(options.tags or ()),
            stream=self.stream,
            needs=self.needs,
            prompt_tokens=self.prompt_tokens,
            max_output_tokens=self.max_output_tokens,
            answers=_answers(self.body),
            batch_id=batch_id,
            line_no=line_no,
            custom_id=custom_id,
            deployment=options.deployment,
            accepted_under=accepted_under,
            allowed_tiers=permissions.tiers or (),
            allowed_regions=permissions.regions or (),
        )

    def payload(self) -> bytes:
        """What the worker gets: JSON with ``endpoint``, ``body`` and ``stream``."""
        return orjson.dumps({"endpoint": self.endpoint, "body": self.body, "stream": self.stream})


def parse_request(
    endpoint: str, body: bytes | dict[str, Any], catalog: Catalog, permissions: Permissions = EVERYTHING
) -> InferenceRequest:
    """Checks a body for one of the three inference endpoints.

    Raises:
        InvalidRequest: not JSON, not an object, or a field is wrong (also a policy or deployment that isn't there);
            ``param`` names it.
        ModelNotFound: the catalogue has no such model, or none for this key.
    """
    adapter = _ADAPTERS.get(endpoint)
    if adapter is None:
        raise InvalidRequest(f"Unknown endpoint; use one of {', '.join(ENDPOINTS)}.", param="endpoint")
    raw = json_object(body) if isinstance(body, bytes) else body
    raw = {name: value for name, value in raw.items() if value is not None or name not in UNSUPPORTED}
    try:
        request = adapter.validate_python(raw)
    except ValidationError as error:
        raise refusal(error, raw) from None
    permitted = permissions.permits(request.model)
    if request.model not in catalog.by_model or not permitted:
        message = f"The model `{request.model}` doesn't exist here. GET /v1/models lists those that do."
        raise ModelNotFound(message, param="model") if permitted else ModelNotPermitted(message, request.model)
    options = request.fabric or _NO_OPTIONS
    if options.policy is not None and options.policy not in catalog.by_policy:
        message = f"There is no such policy; there are {', '.join(sorted(catalog.by_policy))}."
        raise InvalidRequest(message, param="fabric.policy", code="unknown_policy")
    if options.deployment is not None:
        known = [deployment.name for deployment in catalog.by_model[request.model].deployments]
        if options.deployment not in known:
            message = f"`{request.model}` has no such deployment; it has {', '.join(known)}."
            raise InvalidRequest(message, param="fabric.deployment", code="unknown_deployment")
    streams = not isinstance(request, EmbeddingRequest) and bool(request.stream)
    stream_options = None if isinstance(request, EmbeddingRequest) else request.stream_options
    return InferenceRequest(
        endpoint=endpoint,  # type: ignore[arg-type]  # a key of _ADAPTERS
        model=request.model,
        body={name: value for name, value in raw.items() if value is not None and name not in _NOT_FOR_ENGINES},
        options=options,
        stream=streams,
        include_usage=bool(stream_options and stream_options.include_usage),
        needs=_needs(endpoint, raw),
        prompt_tokens=_prompt_tokens(raw),
        max_output_tokens=raw.get("max_completion_tokens") or raw.get("max_tokens"),
        permissions=permissions,
    )


def json_object(body: bytes) -> dict[str, Any]:
    """
    Raises:
        InvalidRequest: not JSON, or not an object.
    """
    try:
        raw = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"The body isn't valid JSON: {error}.", code="invalid_json") from None
    if not isinstance(raw, dict):
        raise InvalidRequest("The body must be a JSON object.", code="invalid_json")
    return raw


def _answers(body: dict[str, Any]) -> int:
    """How many answers one body asks for: ``n`` of each prompt."""
    prompts = body.get("prompt")
    several = len(prompts) if isinstance(prompts, list) and not isinstance(prompts[0], int) else 1
    return int(body.get("n") or 1) * several


def _needs(endpoint: str, raw: dict[str, Any]) -> tuple[str, ...]:
    needs = [CAPABILITY[endpoint]]
    if raw.get("tools"):
        needs.append("tools")
    wanted = (raw.get("response_format") or {}).get("type")
    if wanted in ("json_schema", "json_object"):
        needs.append("json_schema")
    elif wanted == "grammar":
        needs.append("grammar")
    if any(not isinstance(text, str) for text in _chat_parts(raw)):
        needs.append("vision")
    if raw.get("logprobs") not in (None, False):
        needs.append("logprobs")
    return tuple(needs)


def _chat_parts(raw: dict[str, Any]) -> Iterator[str | None]:
    """The texts of all messages; ``None`` for an image."""
    for message in raw.get("messages", ()):
        content = message.get("content")
        if isinstance(content, str):
            yield content
        elif content:
            for part in content:
                yield part.get("text")
        for call in message.get("tool_calls") or ():
            yield call["function"]["arguments"]


def _prompt_tokens(raw: dict[str, Any]) -> int:
    if "messages" in raw:
        parts = list(_chat_parts(raw))
        text = "\n".join(part for part in parts if part is not None)
        extra = len(raw["messages"]) * _TOKENS_PER_MESSAGE + parts.count(None) * _TOKENS_PER_IMAGE
        if tools := raw.get("tools"):
            text += orjson.dumps(tools).decode()
        return estimate_tokens(text) + extra
    prompt = raw["prompt"] if "prompt" in raw else raw["input"]
    if isinstance(prompt, str):
        return estimate_tokens(prompt)
    if isinstance(prompt[0], int):
        return len(prompt)
    if isinstance(prompt[0], str):
        return estimate_tokens("\n".join(prompt))
    return sum(map(len, prompt))
