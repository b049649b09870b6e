"""What an API's refusal means: from status, headers and error body to one named error. Pure.

Messages are ours. Of the API's own words only ``code`` and ``param`` are passed on, and only when they
look like names: its sentences may quote the prompt, or the key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from fabric.contracts.errors import (
    BeyondProviderLimit,
    ContentRefused,
    ContextOverflow,
    EngineError,
    EngineRejected,
    EngineTimeout,
    EngineUnavailable,
    FabricError,
    ProviderAuth,
    ProviderError,
    ProviderMisconfigured,
    ProviderStreamBroken,
    ProviderTimeout,
    ProviderUnavailable,
    QuotaExhausted,
    RateLimited,
    StreamBroken,
)
from workers.engines.limit_headers import retry_after_s


@dataclass(frozen=True, slots=True)
class Faults:
    """Whose API it is, and hence the errors for what can happen to every API."""

    noun: str
    failed: type[FabricError]
    unavailable: type[FabricError]
    timed_out: type[FabricError]
    broken: type[FabricError]


PROVIDER = Faults("The API", ProviderError, ProviderUnavailable, ProviderTimeout, ProviderStreamBroken)
OWN_ENGINE = Faults("The engine", EngineError, EngineUnavailable, EngineTimeout, StreamBroken)

_CODE = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
_PARAM = re.compile(r"[A-Za-z][A-Za-z0-9_.\[\]]{0,127}")

_CONTEXT_CODES = frozenset(("context_length_exceeded", "string_above_max_length", "model_max_prompt_tokens_exceeded"))
_CONTEXT_WORDS = re.compile(
    "maximum context length|max(imum)? model (context )?length|context (length|window|size)"
    "|prompt is too long|input (is|length|token count).{0,40}(too long|exceed)|too many (input )?tokens"
    "|exceeds the (maximum|max) (number of )?(input )?tokens|max_model_len",
    re.IGNORECASE,
)
_QUOTA_CODES = frozenset(("insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "billing_error"))
_QUOTA_WORDS = re.compile("credit balance is too low|insufficient (balance|credits?|funds)", re.IGNORECASE)
#: "… on tokens per min (TPM): Limit 30000, Requested 41000 …": numbers, which hold nothing of the prompt.
_BEYOND_WORDS = re.compile(
    r"tokens per min\S*(?: \(TPM\))?: Limit ([0-9]{1,12}), Requested ([0-9]{1,12})", re.IGNORECASE
)
_KEY_CODES = frozenset(("invalid_api_key", "authentication_error", "API_KEY_INVALID"))
_KEY_WORDS = re.compile("api key not valid|(incorrect|invalid) api[ _-]?key|invalid x-api-key", re.IGNORECASE)
_FILTER_CODES = frozenset(("content_filter", "content_policy_violation", "ResponsibleAIPolicyViolation"))
_MODEL_CODES = frozenset(("model_not_found", "DeploymentNotFound", "deployment_not_found", "not_found_error"))
_TOO_LARGE = 413
#: Error events come with a type where answers come with a status.
_STATUS_OF = {
    "invalid_request_error": 400,
    "billing_error": 402,
    "permission_error": 403,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "timeout_error": 408,
    "overloaded_error": 529,
}


def refusal(
    faults: Faults, deployment: str, status: int, headers: Mapping[str, str], body: bytes, now: float
) -> FabricError:
    """The error for an answer whose status isn't 200. ``now``: seconds since the epoch."""
    return _named(faults, deployment, status, _details(body), retry_after_s(headers, now))


def error_event(faults: Faults, deployment: str, event: dict[str, Any]) -> FabricError:
    """The error for an ``{"error": …}`` that came with status 200: as an event of a stream, or instead of an answer."""
    details = _Details.of(event)
    known = (_STATUS_OF[name] for name in (details.code, details.kind) if name in _STATUS_OF)
    return _named(faults, deployment, details.status or next(known, 500), details, None)


@dataclass(frozen=True, slots=True)
class _Details:
    """What an error body says. ``text`` is only for looking at: it is never passed on."""

    code: str | None = None
    kind: str | None = None
    param: str | None = None
    status: int | None = None
    text: str = ""

    @classmethod
    def of(cls, body: Any) -> _Details:
        """OpenAI's shape, and those that are near: bare, in a list, with a number as code."""
        if isinstance(body, list):
            body = body[0] if body else {}
        if not isinstance(body, dict):
            return cls()
        error = body.get("error", body)
        if not isinstance(error, dict):
            return cls(text=str(error) if isinstance(error, str) else "")
        code, kind = error.get("code"), error.get("type")
        inner = error.get("innererror")
        if isinstance(inner, dict) and isinstance(inner.get("code"), str) and code in (None, "content_filter"):
            code = inner["code"]
        number = code if isinstance(code, int) and not isinstance(code, bool) else error.get("status_code")
        if isinstance(code, str) and code.isdecimal():
            number = int(code)
        text = error.get("message") or body.get("detail") or ""
        return cls(
            code=_name(_CODE, code),
            kind=_name(_CODE, kind),
            param=_name(_PARAM, error.get("param")),
            status=number if isinstance(number, int) and 400 <= number <= 599 else None,
            text=text if isinstance(text, str) else "",
        )

    @property
    def names(self) -> set[str]:
        return {name for name in (self.code, self.kind) if name}


def _named(faults: Faults, deployment: str, status: int, details: _Details, after_s: float | None) -> FabricError:
    who = f"{faults.noun} of deployment {deployment!r}"
    told = _told(status, details)
    if details.names & _QUOTA_CODES or status == 402 or (status in (400, 429) and _QUOTA_WORDS.search(details.text)):
        return QuotaExhausted(f"{who} says that the account's credit is used up ({told}).")
    if status in (401, 403) or details.names & _KEY_CODES or (status == 400 and _KEY_WORDS.search(details.text)):
        return ProviderAuth(f"{who} refuses its key ({told}): check `api_key_env` or `api_key_file`.")
    if status == 429 and (found := _BEYOND_WORDS.search(details.text)) and int(found[2]) > int(found[1]):
        return BeyondProviderLimit(
            f"{who} takes {found[1]} tokens a minute, this request asks for {found[2]} ({told}): make it smaller."
        )
    if status == 429:
        return RateLimited(f"{who} takes no more requests for now ({told}).", retry_after_s=after_s)
    if status == 408:
        return faults.timed_out(f"{who} gave up waiting ({told}).", retry_after_s=after_s)
    if status in (409, 425) or status >= 500:
        return faults.failed(f"{who} failed ({told}).", retry_after_s=after_s)
    if status == 404 or details.names & _MODEL_CODES:
        return ProviderMisconfigured(f"{who} doesn't know the address or the model ({told}): check both.")
    if status in (400, 413, 422):
        return _caller(who, status, told, details)
    return ProviderMisconfigured(f"{who} answered in an unforeseen way ({told}): check `base_url`.")


def _caller(who: str, status: int, told: str, details: _Details) -> FabricError:
    if details.code in _CONTEXT_CODES or _CONTEXT_WORDS.search(details.text):
        return ContextOverflow(f"Prompt and answer don't fit the context window of the model ({told}).")
    if details.names & _FILTER_CODES:
        return ContentRefused(f"{who} refuses the content ({told}).")
    if status == _TOO_LARGE:
        return EngineRejected(f"{who} refuses the request: it is too large ({told}).", code="request_too_large")
    return EngineRejected(f"{who} refuses the request ({told}).", param=details.param)


def _told(status: int, details: _Details) -> str:
    parts = [f"HTTP {status}"]
    if details.code or details.kind:
        parts.append(f"code {details.code or details.kind}")
    if details.param:
        parts.append(f"param {details.param}")
    return ", ".join(parts)


def _name(pattern: re.Pattern[str], value: Any) -> str | None:
    return value if isinstance(value, str) and pattern.fullmatch(value) else None


def _details(body: bytes) -> _Details:
    try:
        return _Details.of(orjson.loads(body))
    except orjson.JSONDecodeError:
        return _Details()
