"""The example of .env: every variable is in it, with its true default, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from fabric.settings import VARIABLES

#: Variables of Docker Compose itself.
COMPOSE_OWN = {"COMPOSE_PROFILES"}
#: Where compose.yaml says nothing, so that the fabric or the image decides.
_EMPTY = {
    "FABRIC_BROKER_URL",
    "FABRIC_DATABASE_URL",
    "FABRIC_CPU_MODEL",
    "FLOWER_BASIC_AUTH",
    "MODELS",
}


@pytest.fixture(scope="module")
def text(folder: Path) -> str:
    return (folder / ".env.example").read_text()


@pytest.fixture(scope="module")
def shown(text: str) -> dict[str, str]:
    return dict(re.findall(r"(?m)^# ([A-Z][A-Z0-9_]+)=(.*)$", text))


def test_copied_as_it_is_it_changes_nothing(text: str) -> None:
    assert not [line for line in text.splitlines() if line and not line.startswith("#")]


def test_every_variable_of_compose_yaml_is_shown(compose: Any, shown: dict[str, str]) -> None:
    assert set(shown) == set(compose.variables) | COMPOSE_OWN


def test_what_is_shown_is_the_default(compose: Any, shown: dict[str, str]) -> None:
    for name in set(shown) - COMPOSE_OWN - _EMPTY:
        assert shown[name] == compose.variables[name], name
    assert all(compose.variables[name] in ("", "models") for name in _EMPTY)


def test_every_setting_of_the_fabric_is_explained(text: str, known_variables: set[str]) -> None:
    mentioned = set(re.findall(r"FABRIC_[A-Z_]+", text))
    assert mentioned == known_variables >= set(VARIABLES)


def test_the_commented_urls_are_ones_that_the_fabric_takes(shown: dict[str, str]) -> None:
    from fabric.settings import load

    given = {name: re.sub(r"\$\{.*?\}", "secret", shown[name]) for name in shown if name.startswith("FABRIC_")}
    loaded = load(environ=given)
    assert loaded.broker_url == "amqp://fabric:secret@rabbitmq:5672//"
    assert loaded.database_url == "postgresql+psycopg://fabric:secret@postgres:5432/fabric"


def test_secrets_stay_out_of_git(folder: Path) -> None:
    assert {".env", "cloud.env"} <= set((folder / ".gitignore").read_text().splitlines())
