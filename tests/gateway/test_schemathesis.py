"""Requests made from the API's own description, good and bad: no 5xx, no status and no shape that isn't described, no
door that is left open."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fabric.contracts.secret import Secrets
from fabric.ledger import Ledger, keys
from fabric.ledger.keys import NewKey

if TYPE_CHECKING:
    from fabric.gateway import GatewaySettings
    from tests.gateway.conftest import Served, Worker

SECRETS = Secrets.passing()
#: A list that is too long may be too large before it is looked at. What JSON Schema can't say (`stream_options` needs
#: `stream`, say) is refused with a 400 and its reason.
CONFIG = """\
[checks.negative_data_rejection]
expected-statuses = [400, 401, 403, 404, 405, 406, 409, 413, 415, 422, 428, 429]
[checks.positive_data_acceptance]
expected-statuses = ["2xx", 400, 401, 403, 404, 409, 413, 429, 503]
"""


@pytest.fixture
def locked(serve: Callable[..., Served], settings: GatewaySettings) -> Iterator[tuple[Served, str]]:
    """A gateway that wants a key, and one that opens everything."""
    served = serve(replace(settings, secrets=SECRETS, body_limit_bytes=2_000_000))
    ledger = Ledger(settings.database_url)
    _, key = ledger.write(
        keys.create,
        SECRETS,
        NewKey("t", ("inference", "batch", "read", "dlq", "admin"), created_ms=1, created_by="cli"),
    )
    yield served, key
    ledger.close()


@pytest.mark.timeout(300)
def test_what_the_description_says_is_so(locked: tuple[Served, str], worker: Worker, tmp_path: Path) -> None:
    served, key = locked
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG)
    asked = [
        *(
            sys.executable,
            "-m",
            "schemathesis.cli",
            "--config-file",
            str(config),
            "run",
            f"{served.url}/openapi.json",
            "--url",
            served.url,
        ),
        *("--checks", "all", "--phases", "coverage,fuzzing", "--max-examples", "3", "--seed", "1"),
        # An event stream of a job that nobody ends doesn't end; large arrays only meet the limit of bodies.
        *("--exclude-path-regex", "/events$", "--continue-on-failure", "--no-color"),
        *("--header", f"Authorization: Bearer {key}"),
    ]
    ended = subprocess.run(asked, capture_output=True, text=True, timeout=280, check=False)
    said = "\n".join(line[:300] for line in ended.stdout.splitlines())
    assert ended.returncode == 0, said[-6_000:] + ended.stderr[-1_000:]
    (count,) = re.findall(r"(\d+) generated", said)
    assert int(count) > 500


def test_a_method_that_a_path_does_not_take_is_told_which_it_takes(locked: tuple[Served, str]) -> None:
    served, key = locked
    with served.http(headers={"authorization": f"Bearer {key}"}) as http:
        paths = http.get("/openapi.json").json()["paths"]
        for path, described in paths.items():
            methods = {method.upper() for method in described} & {"GET", "POST", "DELETE"}
            for method in {"GET", "POST", "DELETE", "PUT", "PATCH"} - methods:
                answer = http.request(method, path.replace("{", "").replace("}", ""))
                assert answer.status_code == 405, f"{method} {path}: {answer.status_code}"
                assert set(answer.headers.get("allow", "").split(", ")) == methods, f"{method} {path}"
