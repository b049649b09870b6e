"""``breaker``: of all deployments, and of one."""

from __future__ import annotations

from pathlib import Path

import pytest

from fabric.contracts.breaker import Breaker
from fabric.contracts.errors import ConfigError
from fabric.settings import load

FILE = """
breaker: {failures: 7, open_s: 2}
models:
  - name: m
    deployments:
      - {name: own, engine: mock, tier: cpu, breaker: {failures: 3}}
      - {name: others, engine: mock, tier: gpu}
"""


def test_what_a_deployment_does_not_say_is_as_for_all(tmp_path: Path) -> None:
    path = tmp_path / "fabric.yaml"
    path.write_text(FILE)
    places = load(path, {}).catalog.by_deployment
    assert places["own"].breaker == Breaker(failures=3, open_s=2)
    assert places["others"].breaker == Breaker(failures=7, open_s=2)


def test_without_a_word_the_defaults_count(tmp_path: Path) -> None:
    path = tmp_path / "fabric.yaml"
    path.write_text("log_level: INFO")
    assert {d.breaker for d in load(path, {}).catalog.by_deployment.values()} == {Breaker()}


@pytest.mark.parametrize("wrong", ["failures: 0", "error_rate: 2", "fails: 3", "open_s: never"])
def test_a_wrong_one_is_named_with_its_line(tmp_path: Path, wrong: str) -> None:
    path = tmp_path / "fabric.yaml"
    path.write_text(f"log_level: INFO\nbreaker: {{{wrong}}}\n")
    with pytest.raises(ConfigError, match=r"fabric\.yaml:2: .*breaker"):
        load(path, {})
