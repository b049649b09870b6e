"""Policy: which rules count, and where would a request go? Nothing runs, and no text of a request is asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import yaml
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from fabric.contracts.catalog import PRIVACY_LABELS, Catalog
from fabric.contracts.errors import FabricError, InvalidRequest
from fabric.contracts.job import PRIORITIES, JobSpec
from fabric.contracts.terms import ENDPOINTS
from fabric.gateway.admission import with_headers
from fabric.gateway.caller import Caller
from fabric.gateway.console.page import Form, Page
from fabric.gateway.console.session import needs
from fabric.gateway.gateway import Gateway
from fabric.gateway.route import route_object, world
from fabric.gateway.submission import parsed
from fabric.routing.constraints import NO_LIMITS, check

_SHOWS = ("POST", "/v1/route")
#: What an endpoint needs to be asked at all.
_PLACEHOLDER: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "-"}]},
    "/v1/completions": {"prompt": "-"},
    "/v1/embeddings": {"input": "-"},
}
_TOKENS_LIMIT = 100_000_000
_NUMBERS = ("deadline_s", "max_cost_usd")


def routes(page: Page) -> list[BaseRoute]:
    async def show(request: Request) -> Response:
        caller = needs(request, *_SHOWS)
        return page.show(request, "policy.html", **_rules(page.gateway, caller), given=Form([]), tried=None)

    async def attempt(request: Request) -> Response:
        caller = needs(request, *_SHOWS)
        form = await page.form(request)
        tried: dict[str, Any] = {"problem": None, "route": None}
        try:
            tried["route"] = await _route(page.gateway, caller, request, form)
        except FabricError as error:
            if error.status >= 500:
                raise
            tried["problem"] = f"{error.info.status}: {error.message}"
        if request.headers.get("hx-request"):
            return page.show(request, "policy_tried.html", tried=tried)
        return page.show(request, "policy.html", **_rules(page.gateway, caller), given=form, tried=tried)

    return [Route("/console/policy", show), Route("/console/policy/try", attempt, methods=["POST"])]


def _rules(gateway: Gateway, caller: Caller) -> dict[str, Any]:
    catalog = gateway.catalog
    return {
        "hash": gateway.policy_hash,
        "default_policy": catalog.default_policy,
        "text": _text(catalog),
        "places": _places(catalog, caller),
        "labels": PRIVACY_LABELS,
        "default_label": catalog.privacy.default,
        "models": caller.permissions.among(catalog.by_model),
        "policies": sorted(catalog.by_policy),
        "priorities": PRIORITIES,
        "endpoints": ENDPOINTS,
    }


def _text(catalog: Catalog) -> str:
    """The rules as in ``fabric.yaml``, defaults included: and nothing of places."""
    said = catalog.model_dump(
        mode="json", include={"default_policy", "policies", "rules", "privacy"}, exclude_none=True
    )
    said["policies"] = {
        name: policy.model_dump(mode="json", exclude_none=True) for name, policy in sorted(catalog.by_policy.items())
    }
    said["rules"] = [rule.model_dump(mode="json", exclude_defaults=True) for rule in catalog.rules]
    text: str = yaml.safe_dump(said, sort_keys=False, allow_unicode=True, width=100)
    return text


def _places(catalog: Catalog, caller: Caller) -> list[dict[str, Any]]:
    """For every model and label: the deployments that the label leaves."""
    rows = []
    for name in caller.permissions.among(catalog.by_model):
        leaves = {}
        for label in PRIVACY_LABELS:
            spec, rule = JobSpec("job_check", "/v1/chat/completions", name, privacy=label), catalog.privacy.of(label)
            deployments = catalog.by_model[name].deployments
            leaves[label] = [d.name for d in deployments if check(spec, d, rule, NO_LIMITS) is None]
        rows.append({"model": name, "leaves": leaves})
    return rows


async def _route(gateway: Gateway, caller: Caller, request: Request, form: Form) -> dict[str, Any]:
    """As ``POST /v1/route``, for a request of that size instead of one with a text."""
    endpoint = form.get("endpoint", "")
    if endpoint not in _PLACEHOLDER:
        raise InvalidRequest(f"Choose one of {', '.join(ENDPOINTS)}.", param="endpoint")
    body: dict[str, Any] = {"model": form.get("model", ""), **_PLACEHOLDER[endpoint]}
    if answer := _number(form, "max_tokens"):
        body["max_tokens"] = int(answer)
    options: dict[str, Any] = {name: form[name] for name in ("privacy", "policy", "priority") if form.get(name)}
    options |= {name: value for name in _NUMBERS if (value := _number(form, name)) is not None}
    if tags := form.get("tags", "").split():
        options["tags"] = tags
    if options:
        body["fabric"] = options
    asked = parsed(endpoint, body, gateway.catalog, caller, gateway.trail)
    spec = asked.spec(
        job_id="job_dry_run",
        tenant=caller.tenant,
        key_id=caller.key_id,
        default_privacy=gateway.catalog.privacy.default,
    )
    tokens = _number(form, "prompt_tokens")
    if tokens is not None:
        spec = replace(spec, prompt_tokens=min(int(tokens), _TOKENS_LIMIT))
    spec = with_headers(spec, request.headers, gateway.catalog)
    return route_object(spec, gateway, await world(gateway))


def _number(form: Form, name: str) -> float | None:
    text = form.get(name, "").strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e12:
        raise InvalidRequest(f"`{name}` must be a number that isn't negative.", param=name)
    return value
