"""What ``options`` of a deployment behind HTTP may hold, and where its key comes from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SecretStr, StringConstraints, ValidationError, field_validator

from fabric.contracts.catalog import Deployment
from fabric.contracts.errors import ConfigError

Seconds = Annotated[float, Field(gt=0, le=86_400)]
HeaderName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9-]{1,64}$")]
HeaderValue = Annotated[str, StringConstraints(pattern=r"^[ -~]{0,512}$")]

#: Written by the transport, or a key's place: keys come from ``api_key_env`` or ``api_key_file`` alone.
_OWN_HEADERS = frozenset(
    (
        *("authorization", "proxy-authorization", "x-api-key", "api-key", "cookie"),
        *("host", "connection", "content-length", "content-type", "transfer-encoding"),
        *("accept", "accept-encoding", "expect", "anthropic-version"),
    )
)
#: Fields of a body that are the fabric's or the caller's.
_OWN_FIELDS = frozenset(("model", "stream", "stream_options", "messages", "prompt", "input", "system", "n"))


class ApiOptions(BaseModel):
    """Time-outs in seconds. Each is long: a time-out throws away what has been paid for."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    #: Address, connection and TLS.
    connect_timeout_s: Seconds = 10.0
    #: Of a stream, from sending the request to the first token. Reasoning models think for minutes.
    first_token_timeout_s: Seconds = 120.0
    #: Of a stream, between two of its chunks; of a whole answer, between two pieces of its body.
    between_tokens_timeout_s: Seconds = 60.0
    #: From sending the request to the end of the answer.
    total_timeout_s: Seconds = 600.0
    #: Of an answer or a stream. 2,048 embeddings of 1,536 numbers are about 40 MB.
    max_answer_bytes: int = Field(64 * 1024 * 1024, ge=1024)
    #: How long a request waits here while the provider's rate limit is spent. Longer keeps it near its
    #: provider; shorter gives it back sooner, so that it can go elsewhere.
    limit_wait_s: float = Field(10.0, ge=0, le=3600)
    #: Sent with every request, such as ``HTTP-Referer``.
    headers: dict[HeaderName, HeaderValue] = Field(default_factory=dict)
    #: Added to every request's address, such as ``api-version``.
    query: dict[str, str] = Field(default_factory=dict)
    #: Put into every body beneath the caller's fields, such as a provider's own switches.
    body: dict[str, Any] = Field(default_factory=dict)
    #: Certificates (PEM) to trust instead of the public ones.
    ca_file: Path | None = None
    #: ``http://host:port`` of a proxy. Proxies are slower here: httpx's own transport is used.
    proxy: Annotated[str, StringConstraints(pattern=r"^https?://[^/@\s]+/?$")] | None = None

    @field_validator("headers")
    @classmethod
    def _no_own_headers(cls, headers: dict[str, str]) -> dict[str, str]:
        for name in headers:
            if name.lower() in _OWN_HEADERS:
                raise ValueError(f"`{name}` is written by the fabric; a key belongs in `api_key_env` or `api_key_file`")
        return headers

    @field_validator("body")
    @classmethod
    def _no_own_fields(cls, body: dict[str, Any]) -> dict[str, Any]:
        for name in body:
            if name in _OWN_FIELDS:
                raise ValueError(f"`{name}` is written by the fabric")
        return body


class CompatibleOptions(ApiOptions):
    """For everything that speaks OpenAI's API."""

    #: Whether streams are asked for their usage. Off for an API that refuses ``stream_options``: its
    #: streams are then billed by an estimate.
    stream_usage: bool = True
    #: What the API calls the limit of a chat's answer; by default what the caller called it, and at OpenAI's own
    #: address ``max_completion_tokens``: its newer models refuse the other name, and its older ones know both.
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] | None = None
    #: Whether the reasoning of earlier turns is sent back. OpenAI's own API refuses it.
    send_reasoning: bool = False


class OpenAIOptions(CompatibleOptions):
    """For hosted APIs."""

    #: Where the key goes: ``Authorization: Bearer`` or, as Azure has it, ``api-key``. ``none``: no key.
    auth: Literal["bearer", "api-key", "none"] = "bearer"


AnyOptions = TypeVar("AnyOptions", bound=BaseModel)


def options_of(deployment: Deployment, kind: type[AnyOptions]) -> AnyOptions:
    """
    Raises:
        ConfigError: an option is unknown or wrong; the message names it.
    """
    try:
        return kind.model_validate(deployment.options)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        path = ".".join(str(step) for step in ("options", *first["loc"]) if step != "[key]")
        if first["type"] == "extra_forbidden":
            known = f"The {deployment.engine} engine knows {', '.join(sorted(kind.model_fields))}."
            raise ConfigError(f"Deployment {deployment.name!r}: unknown option `{path}`. {known}") from None
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"Deployment {deployment.name!r}: `{path}` is wrong: {message}.") from None


def api_key(deployment: Deployment, environ: Mapping[str, str] = os.environ) -> SecretStr | None:
    """The deployment's key; ``None`` when it names no place for one.

    Raises:
        ConfigError: the variable or file that the deployment names holds no key. The message names the
            place, never what is in it.
    """
    if deployment.api_key_env:
        place = f"the environment variable {deployment.api_key_env}"
        value = environ.get(deployment.api_key_env, "")
    elif deployment.api_key_file:
        place = f"the file {deployment.api_key_file}"
        try:
            value = Path(deployment.api_key_file).expanduser().read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not text"
            raise ConfigError(f"Deployment {deployment.name!r}: can't read its key from {place}: {reason}.") from None
    else:
        return None
    key = value.strip()
    if not key:
        raise ConfigError(f"Deployment {deployment.name!r}: its key is missing: {place} is not set or empty.")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(f"Deployment {deployment.name!r}: {place} doesn't hold a key: it must be one printable word.")
    return SecretStr(key)
