"""Several workers at once: real processes of the fabric on one store and one broker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.broker.conftest import Fabric


@pytest.fixture
def new_fabric(new_valkey: Callable[[], Any], tmp_path: Path) -> Iterator[Callable[..., Fabric]]:
    """``new_fabric({"name": {…}})``: a store, and no processes yet. They end with the test."""
    from tests.broker.conftest import Fabric

    made: list[Fabric] = []

    def start(deployments: dict[str, dict[str, Any]], **settings: str) -> Fabric:
        valkey = new_valkey()
        made.append(Fabric(tmp_path, valkey, valkey.broker_url, deployments, settings))
        return made[-1]

    yield start
    for fabric in made:
        fabric.close()
