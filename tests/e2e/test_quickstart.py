"""The README's first command."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

from tests.e2e.conftest import ROOT, environ


def test_quickstart_answers_every_line() -> None:
    with tempfile.TemporaryDirectory(prefix="fabric-quickstart-", dir="/tmp") as folder:
        command = [str(ROOT / "scripts" / "quickstart")]
        variables = environ(FABRIC_DATA_DIR=folder)
        done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=170)
        log = (Path(folder) / "fabric.log").read_text()
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{log[-3000:]}"
    assert "lines 200, ok 194, failed 6" in done.stdout
    results = ROOT / "results"
    answers = [json.loads(line) for line in (results / "output.jsonl").read_text().splitlines()]
    errors = [json.loads(line) for line in (results / "errors.jsonl").read_text().splitlines()]
    assert len({answer["custom_id"] for answer in answers}) == len(answers) == 194
    assert sorted(error["error"]["line"] for error in errors) == [17, 48, 83, 121, 150, 188]
