"""Which deployments a worker serves: ``--model`` and ``--engine-url``."""

from __future__ import annotations

import pytest

from fabric.cli.processes import _attached, _served
from fabric.contracts.catalog import Catalog, Deployment, Model
from fabric.contracts.errors import ConfigError

SMALL = Deployment(
    name="small-gpu", engine="vllm", tier="gpu", model="org/small", options={"args": ["--x"], "proxy": "p"}
)
LARGE = Deployment(name="large-gpu", engine="vllm", tier="gpu", model="org/large")
HERE = Deployment(name="small-cpu", engine="llamacpp", tier="cpu", model="/m.gguf")
CATALOG = Catalog(models=(Model(name="small", deployments=(SMALL, HERE)), Model(name="large", deployments=(LARGE,))))


def test_without_a_model_it_serves_all_of_its_tier() -> None:
    assert _served(CATALOG, "gpu", None) == [SMALL, LARGE]


@pytest.mark.parametrize("name", ["large", "large-gpu", "org/large"])
def test_a_model_has_several_names(name: str) -> None:
    assert _served(CATALOG, "gpu", name) == [LARGE]


def test_a_model_that_is_not_there_is_said_with_those_that_are() -> None:
    with pytest.raises(ConfigError, match="no deployment of org/other on tier gpu; there is org/large, org/small"):
        _served(CATALOG, "gpu", "org/other")
    with pytest.raises(ConfigError, match="no deployment of tier cloud"):
        _served(CATALOG, "cloud", None)


def test_an_engine_that_runs_already_needs_no_options_of_a_child() -> None:
    attached = _attached(SMALL, "http://gpu-1:8000")
    assert attached.base_url == "http://gpu-1:8000"
    assert attached.options == {"proxy": "p"}
    with pytest.raises(ConfigError, match="--engine-url is for vLLM; small-cpu runs on llamacpp"):
        _attached(HERE, "http://gpu-1:8000")
