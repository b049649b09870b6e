"""compose.yaml as Docker Compose reads it: parsed, merged, with defaults for every variable."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from fabric.settings import VARIABLES

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "compose"
_VARIABLE = re.compile(r"\$\$|\$\{(?P<name>[A-Z0-9_]+)(?::-(?P<default>[^}]*))?\}")


@dataclass(frozen=True)
class Compose:
    """``text``: as written. ``file``: with defaults in place of variables. ``services``: its services."""

    text: str
    file: dict[str, Any]
    variables: dict[str, str]

    @property
    def services(self) -> dict[str, dict[str, Any]]:
        services: dict[str, dict[str, Any]] = self.file["services"]
        return services

    @property
    def of_ours(self) -> dict[str, dict[str, Any]]:
        """The services that run one of the fabric's own images."""
        return {name: service for name, service in self.services.items() if "build" in service}

    def environment(self, name: str) -> dict[str, str]:
        return {key: str(value) for key, value in self.services[name].get("environment", {}).items()}


def interpolate(value: Any) -> Any:
    """As Docker Compose does it: after parsing, so that nothing but text comes out of a variable."""
    if isinstance(value, dict):
        return {key: interpolate(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [interpolate(inner) for inner in value]
    if not isinstance(value, str):
        return value
    return _VARIABLE.sub(lambda found: "$" if found[0] == "$$" else found["default"] or "", value)


@pytest.fixture(scope="session")
def compose() -> Compose:
    text = (FOLDER / "compose.yaml").read_text()
    variables = {found["name"]: found["default"] or "" for found in _VARIABLE.finditer(text) if found["name"]}
    return Compose(text, interpolate(yaml.safe_load(text)), variables)


@pytest.fixture(scope="session")
def folder() -> Path:
    return FOLDER


@pytest.fixture(scope="session")
def known_variables() -> set[str]:
    """Every ``FABRIC_*`` variable that means something."""
    return set(VARIABLES)


@pytest.fixture(scope="session")
def tool() -> Callable[[str, str], str]:
    """Finds a program beside this Python or on the path; skips the test, naming it, where it isn't installed."""

    def find(name: str, whence: str) -> str:
        places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        found = shutil.which(name, path=places)
        if found is None:
            pytest.skip(f"{name} isn't installed ({whence})")
        return found

    return find
