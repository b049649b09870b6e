"""Dead letters: what was parked and why? Replay and drop, one or many."""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from fabric.contracts.errors import BudgetExceeded
from fabric.contracts.ids import is_id
from fabric.contracts.job import JobSpec, JobState
from fabric.gateway import replaying
from fabric.gateway.caller import Caller
from fabric.gateway.console.once import Once
from fabric.gateway.console.page import Form, Page
from fabric.gateway.console.pulse import BEAT_S
from fabric.gateway.console.session import may, needs
from fabric.gateway.gateway import Gateway
from fabric.gateway.job_object import parked_object
from fabric.store import reads, transitions
from fabric.store.reads import JobRecord

_LIST = ("GET", "/v1/dead-letters")
_REPLAY = ("POST", "/v1/dead-letters/{job_id}/replay")
_DROP = ("DELETE", "/v1/dead-letters/{job_id}")
_PATH = "/console/dead-letters"
_PAGE = 100
#: Parked jobs, of all tenants, that are looked at for one page.
_SCANNED = 2_000
_CHUNK = 500


def routes(page: Page) -> list[BaseRoute]:
    numbers = Once(BEAT_S * 0.9)

    async def values(caller: Caller, code: str | None) -> dict[str, Any]:
        records = await _own_parked(page.gateway, caller)
        letters = [parked_object(record) for record in records]
        codes = Counter(_code(letter) for letter in letters)
        shown = [letter for letter in letters if code in (None, _code(letter))]
        return {
            "letters": shown[:_PAGE],
            "total": len(shown),
            "codes": codes.most_common(),
            "code": code,
            "may_replay": may(caller, *_REPLAY),
            "may_drop": may(caller, *_DROP),
        }

    async def show(request: Request) -> Response:
        caller = needs(request, *_LIST)
        return page.show(request, "dead_letters.html", **await values(caller, request.query_params.get("code") or None))

    async def live(request: Request) -> Response:
        """How many there are by now; the list itself stays still under the reader's hand."""
        caller = needs(request, *_LIST)

        async def piece() -> str:
            return page.piece("dead_letters_live.html", total=len(await _own_parked(page.gateway, caller)))

        return page.live(caller, lambda: numbers.get(caller, piece))

    async def replay(request: Request) -> Response:
        caller = needs(request, *_REPLAY)
        form = await page.form(request)
        chosen = await _chosen(page.gateway, caller, form)
        if not chosen:
            return page.done(_back(form), "none")
        for spec in chosen:
            with contextlib.suppress(BudgetExceeded):  # it stays parked, and the page shows it
                await replaying.replay(page.gateway, spec)
        return page.done(_back(form), "replayed" if len(chosen) == 1 else "replayed-some")

    async def drop(request: Request) -> Response:
        caller = needs(request, *_DROP)
        form = await page.form(request)
        ids = [spec.id for spec in await _chosen(page.gateway, caller, form)]
        if not ids:
            return page.done(_back(form), "none")
        if form.get("sure") != "yes":
            return page.show(request, "dead_letters_drop.html", ids=ids, back=_back(form), code=form.get("code", ""))
        await page.gateway.ask(transitions.drop(ids))
        return page.done(_back(form), "dropped")

    return [
        Route(_PATH, show),
        Route(f"{_PATH}/live", live),
        Route(f"{_PATH}/replay", replay, methods=["POST"]),
        Route(f"{_PATH}/drop", drop, methods=["POST"]),
    ]


def _code(letter: dict[str, Any]) -> str:
    return str(letter["reasons"][-1]["code"]) if letter["reasons"] else "none"


def _back(form: Form) -> str:
    return f"{_PATH}?{urlencode({'code': form['code']})}" if form.get("code") else _PATH


async def _own_parked(gateway: Gateway, caller: Caller) -> list[JobRecord]:
    """Records of the caller's parked jobs, newest first."""
    found: list[JobRecord] = []
    for offset in range(0, _SCANNED, _CHUNK):
        ids = await gateway.ask(reads.parked(limit=_CHUNK, offset=offset))
        records = await gateway.ask_all(map(reads.summary, ids)) if ids else []
        found += [record for record in records if _is_own(record, caller) and record is not None]
        if len(ids) < _CHUNK:
            break
    return found


async def _chosen(gateway: Gateway, caller: Caller, form: Form) -> list[JobSpec]:
    """What was ticked, as far as it is the caller's parked jobs."""
    asked = [job_id for job_id in dict.fromkeys(form.every("job")) if is_id(job_id, "job")][:_PAGE]
    records = await gateway.ask_all(map(reads.summary, asked)) if asked else []
    return [record.spec for record in records if record is not None and _is_own(record, caller)]


def _is_own(record: JobRecord | None, caller: Caller) -> bool:
    return record is not None and record.state is JobState.DEAD and record.spec.tenant == caller.tenant
