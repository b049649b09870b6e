"""Anthropic's Message Batches: requests go up in one body, results come down line by line within a day."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson

from fabric.contracts.catalog import Deployment
from fabric.contracts.errors import ConfigError, EngineUnsupported, FabricError, ProviderBatchExpired, ProviderError
from workers.engines.anthropic import VERSION, AnthropicOptions, api_root
from workers.engines.anthropic_answer import whole_answer
from workers.engines.anthropic_request import message_body
from workers.engines.api_failures import PROVIDER
from workers.engines.api_options import options_of
from workers.engines.asking import ErrorEvent, NotTheProtocol, json_object
from workers.engines.engine import Answer, Request
from workers.engines.http import Api
from workers.engines.openai import authorization
from workers.engines.provider_batch import Group, Look, Result

_PATH = "/messages/batches"
_PAGE = 100
#: By how much the provider's clock may be behind ours, and how long a batch may take to be made, in seconds.
_CLOCKS_S = 60
_MAKING_S = 900


class AnthropicBatches:
    """``Batches`` of one deployment."""

    #: A batch carries no name of ours: until its results are there, one of the right size and age may be another's.
    certain = False

    def __init__(self, deployment: Deployment) -> None:
        if not deployment.model:
            raise ConfigError(f"Deployment {deployment.name!r}: `model` is missing: the provider's name of the model.")
        self._deployment = deployment
        self._options = options_of(deployment, AnthropicOptions)
        self._api = Api(deployment, api_root(deployment), self._options, PROVIDER)

    def open(self) -> None:
        key = authorization(self._deployment, self._options.auth)
        self._api.authorize({"anthropic-version": VERSION, **key})

    def line(self, request: Request) -> bytes:
        if request.endpoint != "/v1/chat/completions":
            raise EngineUnsupported(
                f"Anthropic's API has no {request.endpoint.removeprefix('/v1/')}.", param="endpoint"
            )
        params = message_body(
            request.body, self._deployment.model, max_tokens=self._options.max_tokens, defaults=self._options.body
        )
        return orjson.dumps({"custom_id": request.job_id, "params": params})

    async def prepare(self, group: Group, lines: Sequence[bytes]) -> bytes:
        return b'{"requests":[' + b",".join(lines) + b"]}"

    async def create(self, group: Group, prepared: bytes) -> str:
        return self._id(await self._object("POST", _PATH, prepared, once=True))

    async def find(self, group: Group, not_these: Collection[Any]) -> str | None:
        page = await self._object("GET", f"{_PATH}?limit={_PAGE}")
        for batch in page.get("data") or ():
            if isinstance(batch, dict) and _may_be(group, batch) and batch.get("id") not in not_these:
                return self._id(batch)
        return None

    async def look(self, provider_id: str) -> Look:
        batch = await self._object("GET", f"{_PATH}/{provider_id}")
        if batch.get("processing_status") != "ended":
            return Look(ended=False)
        missing = ProviderError(f"{self._api.who} brought no result for the request.")
        # The address of the results is known: the key goes nowhere else, whatever ``results_url`` says.
        return Look(True, (self._id(batch),), missing=missing)

    async def results(self, group: Group, look: Look) -> AsyncIterator[Result]:
        for provider_id in look.files:
            async with self._api.send("GET", f"{_PATH}/{provider_id}/results") as exchange:
                async for line in exchange.lines():
                    if line.strip():
                        yield self._result(line)

    async def cancel(self, provider_id: str) -> None:
        await self._object("POST", f"{_PATH}/{provider_id}/cancel")

    async def clear(self, look: Look) -> None:
        for provider_id in look.files:
            await self._object("DELETE", f"{_PATH}/{provider_id}")

    async def close(self) -> None:
        await self._api.close()

    async def _object(self, method: str, path: str, content: bytes = b"", *, once: bool = False) -> dict[str, Any]:
        async with self._api.send(method, path, content, once=once) as exchange:
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

    def _result(self, line: bytes) -> Result:
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
            return Result(custom_id, self._outcome(values.get("result")))
        except ErrorEvent as error:
            return Result(custom_id, self._api.error_event(error.body))
        except NotTheProtocol as error:
            return Result(custom_id, self._api.wrong(str(error)))

    def _outcome(self, result: Any) -> Answer | FabricError:
        match result:
            case {"type": "succeeded", "message": dict(message)}:
                answer, usage = whole_answer(orjson.dumps(message))
                return Answer(answer, usage)
            case {"type": "errored", "error": dict(error)}:
                raise ErrorEvent(error)
            case {"type": "expired" | "canceled"}:
                return ProviderBatchExpired(f"{self._api.who} gave its batch up before it had come to the request.")
        raise NotTheProtocol("a result of an unknown type")


def _may_be(group: Group, batch: dict[str, Any]) -> bool:
    counts = batch.get("request_counts")
    if not isinstance(counts, dict) or sum(n for n in counts.values() if isinstance(n, int)) != group.size:
        return False
    try:
        created = datetime.fromisoformat(str(batch.get("created_at")))
    except ValueError:
        return False
    since_s = (created if created.tzinfo else created.replace(tzinfo=UTC)).timestamp() - group.begun_ms / 1000
    return -_CLOCKS_S <= since_s <= _MAKING_S
