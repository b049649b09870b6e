"""The client's pure part: what is sent, and how what comes back is read. No I/O."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fabric.contracts import errors
from fabric.contracts.errors import FabricError
from fabric.contracts.job import ENDED, ENDPOINTS, Endpoint

CHAT: Endpoint = "/v1/chat/completions"
#: A text is one message of the user; a list is a conversation.
Prompt = str | Sequence[Mapping[str, Any]]
#: What ``map`` takes: a prompt, or a whole request body.
Request = Prompt | Mapping[str, Any]

#: Items asked for at once.
_PAGE = 100
UNREACHABLE = "unreachable"
#: Refusals that pass: the same call may be sent again.
_PASSING = frozenset((UNREACHABLE, errors.Unavailable.code, errors.Busy.code))


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP request. ``repeatable``: sending it twice does no more than sending it once."""

    method: str
    path: str
    body: Mapping[str, Any] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str | int] = field(default_factory=dict)
    repeatable: bool = True


def create(path: str, body: Mapping[str, Any], key: str | None = None) -> Call:
    """A POST that makes something once, however often it is sent."""
    return Call("POST", path, body, {"Idempotency-Key": key or f"client-{uuid.uuid4().hex}"})


def chat_body(prompt: Prompt, model: str, params: Mapping[str, Any]) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    return {"model": model, "messages": messages, **params}


def job_body(endpoint: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """What ``POST /v1/jobs`` takes: ``fabric`` stands beside the body there."""
    inner = dict(body)
    options = inner.pop("fabric", None)
    return {"endpoint": endpoint, "body": inner, **({"fabric": options} if options else {})}


def route(body: Mapping[str, Any]) -> Call:
    """The dry run of an inference request. It makes nothing, so that it may be sent again."""
    return Call("POST", "/v1/route", body)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer and how it came about. ``body`` is OpenAI's."""

    body: dict[str, Any]
    job_id: str | None = None
    tier: str | None = None
    deployment: str | None = None
    attempts: int | None = None
    cost_usd: float | None = None
    queue_ms: int | None = None

    @property
    def text(self) -> str:
        """The first choice's text; empty for a tool call or an embedding."""
        for choice in self.body.get("choices", ()):
            return (choice.get("message") or {}).get("content") or choice.get("text") or ""
        return ""

    @property
    def usage(self) -> dict[str, Any]:
        return self.body.get("usage") or {}


def answer(body: bytes, headers: Mapping[str, str]) -> Answer:
    """A finished request. ``headers`` are looked up in lower case."""
    attempts, cost, queue = (headers.get(f"x-fabric-{name}") for name in ("attempts", "cost-usd", "queue-ms"))
    return Answer(
        body=json.loads(body),
        job_id=headers.get("x-fabric-job-id"),
        tier=headers.get("x-fabric-tier"),
        deployment=headers.get("x-fabric-deployment"),
        attempts=int(attempts) if attempts else None,
        cost_usd=float(cost) if cost else None,
        queue_ms=int(queue) if queue else None,
    )


def ended(job: Mapping[str, Any]) -> bool:
    return job["state"] in ENDED


def job_answer(job: Mapping[str, Any]) -> Answer:
    """The result of an ended job, as ``GET /v1/jobs/{id}`` shows it.

    Raises:
        FabricError: why it has none.
    """
    if job["state"] != "succeeded":
        raise job_error(job)
    attempts = job.get("attempts") or []
    last = attempts[-1] if attempts else {}
    return Answer(
        body=job.get("result") or {},
        job_id=job["id"],
        tier=last.get("tier"),
        deployment=last.get("deployment"),
        attempts=len(attempts),
        cost_usd=job.get("cost_usd"),
    )


def job_error(job: Mapping[str, Any]) -> FabricError:
    told = job.get("error")
    if told:
        return error_from(told, told.get("status") or 0)
    return FabricError(f"The job {job['id']} ended as {job['state']}.")


@dataclass(frozen=True, slots=True)
class Mapped:
    """One request of a ``map``: its place in what was given, and its answer or its error."""

    index: int
    request: Request
    answer: Answer | None
    error: FabricError | None

    @property
    def text(self) -> str:
        """The answer's text.

        Raises:
            FabricError: the request has no answer.
        """
        if self.error is not None:
            raise self.error
        return self.answer.text if self.answer else ""


class Pages:
    """Walks a list that comes in pages. ``mark="after"``: OpenAI's lists, which go on behind the last id."""

    def __init__(
        self, path: str, limit: int | None, *, mark: str = "cursor", query: Mapping[str, str] | None = None
    ) -> None:
        self._mark = mark
        self._asked = query or {}
        self.more = limit is None or limit > 0
        self._path = path
        self._left = limit
        self._query: dict[str, str | int] = {}

    def call(self) -> Call:
        size = _PAGE if self._left is None else min(_PAGE, self._left)
        return Call("GET", self._path, query={"limit": size, **self._asked, **self._query})

    def read(self, page: Mapping[str, Any]) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = page["data"]
        if self._left is not None:
            items = items[: self._left]
            self._left -= len(items)
        cursor = page.get("next_cursor" if self._mark == "cursor" else "last_id")
        self.more = bool(page.get("has_more") and cursor and self._left != 0)
        self._query = {self._mark: cursor} if cursor else {}
        return items


def spending(path: str, limit: int | None, group_by: Sequence[str], filters: Mapping[str, Any]) -> Pages:
    """The rows of usage or costs; filters that are ``None`` are left out."""
    query = {name: str(value) for name, value in filters.items() if value is not None}
    return Pages(path, limit, query={**query, **({"group_by": ",".join(group_by)} if group_by else {})})


def dead_letters(limit: int | None, filters: Mapping[str, Any]) -> Pages:
    """Parked jobs; filters that are ``None`` are left out."""
    query = {name: str(value) for name, value in filters.items() if value is not None}
    return Pages("/v1/dead-letters", limit, query=query)


def webhook_deliveries(limit: int | None, filters: Mapping[str, str | None]) -> Pages:
    """Filters that are ``None`` are left out."""
    query = {name: value for name, value in filters.items() if value is not None}
    return Pages("/v1/webhook-deliveries", limit, query=query)


def replay_webhook(delivery_id: str) -> Call:
    return Call("POST", f"/v1/webhook-deliveries/{quote(delivery_id, safe='')}/replay")


def replay(job_id: str, policy: str | None) -> Call:
    return Call("POST", f"/v1/dead-letters/{job_id}/replay", None if policy is None else {"policy": policy})


def first_model(models: Sequence[Mapping[str, Any]]) -> str:
    """
    Raises:
        ModelNotFound: the fabric has none.
    """
    if not models:
        raise errors.ModelNotFound("The fabric has no models; `models` in fabric.yaml names them.")
    return str(models[0]["id"])


def endpoint_for(body: Mapping[str, Any]) -> Endpoint:
    """The endpoint that takes this body."""
    if "messages" in body:
        return CHAT
    return "/v1/embeddings" if "input" in body else "/v1/completions"


def endpoint_of(path: Path) -> str:
    """The endpoint that the first readable line of a batch file names."""
    with path.open("rb") as lines:
        for line in lines:
            try:
                url = json.loads(line)["url"]
            except (ValueError, KeyError, TypeError):
                continue
            if url in ENDPOINTS:
                return str(url)
    return CHAT


def batch_body(
    file_id: str, endpoint: str, deadline_s: float | None = None, max_cost_usd: float | None = None
) -> dict[str, Any]:
    """``deadline_s``, ``max_cost_usd``: of the batch as a whole. What is later than a day needs a longer window."""
    limits = {"deadline_s": deadline_s, "max_cost_usd": max_cost_usd}
    asked = {name: value for name, value in limits.items() if value is not None}
    days = ceil((deadline_s or 0) / 86_400)
    body: dict[str, Any] = {
        "input_file_id": file_id,
        "endpoint": endpoint,
        "completion_window": f"{days}d" if days > 1 else "24h",
    }
    return {**body, "fabric": asked} if asked else body


def batch_ended(batch: Mapping[str, Any]) -> bool:
    return batch["status"] in ("completed", "failed", "expired", "cancelled")


def batch_counts(batch: Mapping[str, Any]) -> tuple[int, int | None]:
    """Lines done, and how many there are as far as is known."""
    counts = batch.get("request_counts") or {}
    return counts.get("completed", 0) + counts.get("failed", 0), counts.get("total") or None


def result_files(batch: Mapping[str, Any]) -> list[str]:
    return [file_id for file_id in (batch.get("output_file_id"), batch.get("error_file_id")) if file_id]


def _all(kind: type[FabricError]) -> Iterator[type[FabricError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _all(child)


#: Of two with the same code the first counts: what a client can tell apart is in the code.
_BY_CODE: dict[str, type[FabricError]] = {}
for _kind in _all(FabricError):
    _BY_CODE.setdefault(_kind.code, _kind)
#: For codes that this client doesn't know: the nearest class by status.
_BY_STATUS: dict[int, type[FabricError]] = {
    400: errors.InvalidRequest,
    401: errors.NotAuthenticated,
    403: errors.PermissionDenied,
    404: errors.NotFound,
    409: errors.Conflict,
    413: errors.TooLarge,
    415: errors.InvalidRequest,
    422: errors.NoEligibleDeployment,
    429: errors.Busy,
    502: errors.EngineError,
    503: errors.Unavailable,
    504: errors.DeadlineExceeded,
}
_BY_TYPE: dict[str, type[FabricError]] = {kind.type: kind for kind in (errors.InvalidRequest, errors.ProviderError)}


def error_from(told: Mapping[str, Any], status: int, retry_after_s: float | None = None) -> FabricError:
    """The error that the server raised, from OpenAI's error object."""
    code = told.get("code") or ""
    kind = _BY_CODE.get(code) or _BY_STATUS.get(status) or _BY_TYPE.get(told.get("type") or "") or FabricError
    message = str(told.get("message") or "The fabric gave no reason.")
    return kind(message, param=told.get("param"), code=code or None, retry_after_s=retry_after_s)


def error_of(status: int, body: bytes, headers: Mapping[str, str]) -> FabricError:
    """The error in an HTTP answer, also when it isn't the fabric that answered."""
    retry_after = headers.get("retry-after", "")
    seconds = float(retry_after) if retry_after.replace(".", "", 1).isdigit() else None
    try:
        told = json.loads(body)["error"]
        return error_from(told if isinstance(told, dict) else {"message": told}, status, seconds)
    except (ValueError, KeyError, TypeError):
        return error_from({"message": f"HTTP status {status}, without the fabric's error shape."}, status, seconds)


def passing(error: BaseException) -> bool:
    """Whether the same call may succeed a moment later."""
    return isinstance(error, FabricError) and error.error_code in _PASSING


def unreachable(url: str, reason: str) -> FabricError:
    return errors.Unavailable(f"Can't reach the fabric at {url}: {reason}.", code=UNREACHABLE)
