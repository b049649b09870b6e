"""A catalogue with a place at home and one in the cloud, and requests to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fabric.contracts.catalog import Catalog
from fabric.contracts.job import JobSpec
from fabric.contracts.request import InferenceRequest, parse_request
from fabric.privacy import Screened, screen_of


def catalog(**privacy: Any) -> Catalog:
    capabilities = ["chat", "completions", "embeddings", "tools", "vision", "json_schema"]
    deployments = [
        {"engine": "mock", "tier": "cpu", "name": "home", "capabilities": capabilities},
        {"engine": "openai", "tier": "cloud", "name": "away", "capabilities": capabilities, "model": "m"}
        | {"data_policy": "zero_retention"},
    ]
    return Catalog.model_validate({"models": [{"name": "m", "deployments": deployments}], "privacy": privacy})


def parsed(body: dict[str, Any], endpoint: str = "/v1/chat/completions", **options: Any) -> InferenceRequest:
    return parse_request(endpoint, {"model": "m", **body, **({"fabric": options} if options else {})}, catalog())


def spec_of(request: InferenceRequest) -> JobSpec:
    return request.spec(job_id="job_1", tenant="t")


def screened(rules: Catalog, body: dict[str, Any], **options: Any) -> Screened:
    endpoint = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    endpoint = "/v1/embeddings" if "input" in body else endpoint
    request = parsed(body, endpoint, **options)
    return screen_of(rules).screened(spec_of(request), request)


@pytest.fixture(name="catalog", scope="session")
def _catalog() -> Callable[..., Catalog]:
    return catalog


@pytest.fixture(name="screened", scope="session")
def _screened() -> Callable[..., Screened]:
    return screened
