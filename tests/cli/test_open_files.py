"""The limit of open files, in a process of its own: it can't be put back."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

HARD = resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def limits(code: str, soft: int, hard: int) -> str:
    """What ``code`` prints in a process with these limits."""
    start = (
        "import logging, resource; from fabric.cli.open_files import raise_limit, warn_below; logging.basicConfig()\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))\n"
    )
    done = subprocess.run([sys.executable, "-c", start + code], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


@pytest.mark.parametrize(("soft", "hard"), [(200, 300), (300, 300)])
def test_the_soft_limit_goes_up_to_the_hard_one(soft: int, hard: int) -> None:
    said = limits("print(raise_limit(), *resource.getrlimit(resource.RLIMIT_NOFILE))", soft, hard)
    assert said.split() == ["300", "300", "300"]


def test_one_that_is_high_enough_stays() -> None:
    said = limits("print(raise_limit(), raise_limit())", 250, HARD)
    high = said.split()[0]
    assert said.split() == [high, high] and int(high) > 250


def test_too_few_for_the_slots_is_said() -> None:
    assert "its deployments may need 640 open files, this process may have 300" in limits(
        "warn_below(640, 'its deployments')", 200, 300
    )
    assert limits("warn_below(290, 'its deployments')", 200, 300) == ""
