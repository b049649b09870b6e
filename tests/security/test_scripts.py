"""Every script of the store runs under the users of the roles that call it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import fabric.store
from tests.security.as_roles import SCRIPTS

ROOT = Path(__file__).parents[2]
#: Tests that drive all scripts through all their branches.
DRIVERS = ("tests/store", "tests/workers/engines/test_provider_batches.py", "tests/workers/test_shared_limits.py")
#: The same again in all orders: too long for here.
LEFT_OUT = "tests/store/test_state_machine.py"


def test_it_is_said_of_each_who_calls_it() -> None:
    scripts = (Path(fabric.store.__file__).parent / "scripts").glob("[a-z]*.lua")
    assert {path.stem for path in scripts} == set(SCRIPTS)


def test_no_role_misses_a_right() -> None:
    command = ("-m", "pytest", "-q", "-p", "tests.security.as_roles", "-p", "no:cacheprovider", "--deselect", LEFT_OUT)
    done = subprocess.run([sys.executable, *command, *DRIVERS], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
