"""OpenAI's Batch API: a file of requests goes up, a file of answers comes down within a day."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Collection, Sequence
from typing import Any

import orjson

from fabric.contracts.catalog import Deployment
from fabric.contracts.errors import (
    ConfigError,
    EngineRejected,
    FabricError,
    ProviderBatchExpired,
    ProviderError,
    ProviderMisconfigured,
    QuotaExhausted,
    RateLimited,
)
from workers.engines.api_failures import PROVIDER
from workers.engines.asking import ErrorEvent, NotTheProtocol, json_object
from workers.engines.engine import Answer, Request
from workers.engines.http import Api
from workers.engines.openai import OPENAI_URL, authorization, hosted_options
from workers.engines.openai_wire import estimated_usage, request_body, told, whole_answer, written_tokens
from workers.engines.provider_batch import Group, Look, Result

#: Where a group's name is among a batch's metadata.
_GROUP = "fabric_group"
_WINDOW = "24h"
_PAGE = 100
#: Pages that are looked through for a batch of which it isn't known whether it was made.
_PAGES = 20
#: By how much the provider's clock may be behind ours, in seconds.
_CLOCKS_S = 300
_ENDED = frozenset(("completed", "failed", "expired", "cancelled"))
#: A provider takes no more for now, until some of what it has is done.
_FULL_AGAIN_S = 60.0
_OK = 200
_CODE_CHARS = 64


class OpenAIBatches:
    """``Batches`` of one deployment."""

    certain = True

    def __init__(self, deployment: Deployment) -> None:
        if not deployment.model:
            raise ConfigError(f"Deployment {deployment.name!r}: `model` is missing: the provider's name of the model.")
        self._deployment = deployment
        self._options = hosted_options(deployment)
        self._api = Api(deployment, deployment.base_url or OPENAI_URL, self._options, PROVIDER)

    def open(self) -> None:
        self._api.authorize(authorization(self._deployment, self._options.auth))

    def line(self, request: Request) -> bytes:
        body = request_body(
            request.body,
            self._deployment.model,
            max_tokens_field=self._options.max_tokens_field,
            send_reasoning=self._options.send_reasoning,
            defaults=self._options.body,
        )
        head = orjson.dumps({"custom_id": request.job_id, "method": "POST", "url": request.endpoint})
        return head[:-1] + b',"body":' + body + b"}"

    async def prepare(self, group: Group, lines: Sequence[bytes]) -> bytes:
        boundary = secrets.token_hex(16)
        parts = (
            f'--{boundary}\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n',
            f'--{boundary}\r\ncontent-disposition: form-data; name="file"; filename="{group.id}.jsonl"\r\n',
            "content-type: application/jsonl\r\n\r\n",
        )
        content = b"".join(("".join(parts).encode(), b"\n".join(lines), f"\n\r\n--{boundary}--\r\n".encode()))
        kind = f"multipart/form-data; boundary={boundary}"
        file = await self._object("POST", "/files", content, kind)
        return orjson.dumps(
            {
                "input_file_id": self._id(file),
                "endpoint": group.endpoint,
                "completion_window": _WINDOW,
                "metadata": {_GROUP: group.id},
            }
        )

    async def create(self, group: Group, prepared: bytes) -> str:
        return self._id(await self._object("POST", "/batches", prepared, once=True))

    async def find(self, group: Group, not_these: Collection[Any]) -> str | None:
        after = ""
        for _ in range(_PAGES):
            page = await self._object("GET", f"/batches?limit={_PAGE}{after}")
            batches = [batch for batch in page.get("data") or () if isinstance(batch, dict)]
            for batch in batches:
                if (batch.get("metadata") or {}).get(_GROUP) == group.id and batch.get("id") not in not_these:
                    return self._id(batch)
            if not page.get("has_more") or not batches or _before(group, batches[-1].get("created_at")):
                break
            after = f"&after={self._id(batches[-1])}"
        return None

    async def look(self, provider_id: str) -> Look:
        batch = await self._object("GET", f"/batches/{provider_id}")
        status = batch.get("status")
        if status not in _ENDED:
            return Look(ended=False)
        files = tuple(file for file in (batch.get("output_file_id"), batch.get("error_file_id")) if file)
        input_file = batch.get("input_file_id")
        if status == "failed":
            errors = [error for error in (batch.get("errors") or {}).get("data") or () if isinstance(error, dict)]
            refused = {n - 1: self._bad_line(e) for e in errors if isinstance(n := e.get("line"), int) and n > 0}
            return Look(True, refusal=self._refusal(errors), refused=refused, input_file=input_file)
        return Look(True, files, missing=self._missing(status), input_file=input_file)

    async def results(self, group: Group, look: Look) -> AsyncIterator[Result]:
        for file in look.files:
            async with self._api.send("GET", f"/files/{file}/content") as exchange:
                async for line in exchange.lines():
                    if line.strip():
                        yield self._result(group, line)

    async def cancel(self, provider_id: str) -> None:
        await self._object("POST", f"/batches/{provider_id}/cancel")

    async def clear(self, look: Look) -> None:
        for file in (*look.files, look.input_file):
            if file:
                await self._object("DELETE", f"/files/{file}")

    async def close(self) -> None:
        await self._api.close()

    async def _object(
        self, method: str, path: str, content: bytes = b"", kind: str | None = None, *, once: bool = False
    ) -> dict[str, Any]:
        async with self._api.send(method, path, content, content_type=kind, once=once) as exchange:
            body = await exchange.whole()
        try:
            return json_object(body)
        except NotTheProtocol as error:
            raise self._api.wrong(str(error)) from None

    def _id(self, values: dict[str, Any]) -> str:
        found = values.get("id")
        if not isinstance(found, str) or not found.replace("-", "").replace("_", "").isalnum():
            raise self._api.wrong("an object without an id")
        return found

    def _result(self, group: Group, line: bytes) -> Result:
        """
        Raises:
            FabricError: the line says nothing of any request.
        """
        try:
            values = json_object(line)
        except NotTheProtocol as error:
            raise self._api.wrong(f"a line that isn't whole: {error}") from None
        custom_id = values.get("custom_id")
        if not isinstance(custom_id, str):
            raise self._api.wrong("a line without a custom_id")
        try:
            return Result(custom_id, self._outcome(group, values))
        except ErrorEvent as error:
            return Result(custom_id, self._api.error_event(error.body))
        except NotTheProtocol as error:
            return Result(custom_id, self._api.wrong(str(error)))

    def _outcome(self, group: Group, values: dict[str, Any]) -> Answer | FabricError:
        response = values.get("response")
        if isinstance(response, dict) and response.get("status_code"):
            body = orjson.dumps(response.get("body"))
            if response["status_code"] != _OK:
                return self._api.refused(int(response["status_code"]), body)
            answer, usage = whole_answer(group.endpoint, body)
            if usage is None:
                # The prompt isn't here any more.
                usage = estimated_usage({}, written_tokens(answer))
                answer["usage"] = told(usage)
            return Answer(answer, usage)
        error = values.get("error")
        if isinstance(error, dict) and error.get("code") in ("batch_expired", "batch_cancelled"):
            return self._missing("expired")
        raise ErrorEvent({"error": error if isinstance(error, dict) else {}})

    def _missing(self, status: str) -> FabricError:
        if status == "completed":
            return ProviderError(f"{self._api.who} brought no result for the request.")
        return ProviderBatchExpired(f"{self._api.who} gave its batch up before it had come to the request.")

    def _bad_line(self, error: dict[str, Any]) -> FabricError:
        return EngineRejected(f"{self._api.who} refuses the request ({_said(error)}).")

    def _refusal(self, errors: Sequence[dict[str, Any]]) -> FabricError:
        """What a batch that didn't even start means for its requests."""
        told_of = _said(errors[0]) if errors else "it doesn't say why"
        codes = {error.get("code") for error in errors}
        if codes & {"token_limit_exceeded", "rate_limit_exceeded", "request_limit_exceeded"}:
            message = f"{self._api.who} has as many batches waiting as it takes ({told_of})."
            return RateLimited(message, retry_after_s=_FULL_AGAIN_S)
        if codes & {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"}:
            return QuotaExhausted(f"{self._api.who} says that the account's credit is used up ({told_of}).")
        if not codes or None in codes:
            return ProviderError(f"{self._api.who} refused the batch ({told_of}).")
        return ProviderMisconfigured(f"{self._api.who} refused the batch ({told_of}).")


def _said(error: dict[str, Any]) -> str:
    """Only the code, and only when it looks like a name: sentences may quote prompts."""
    code = error.get("code")
    return (
        f"code {code}" if isinstance(code, str) and code.replace("_", "").isalnum() and len(code) <= 64 else "no code"
    )


def _before(group: Group, created_at: Any) -> bool:
    return isinstance(created_at, int | float) and created_at < group.begun_ms / 1000 - _CLOCKS_S
