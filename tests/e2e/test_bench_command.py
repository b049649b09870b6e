"""``fabric bench`` against a fabric that runs, and a deployment that gets worse."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.e2e.conftest import Fabric, new_fabric

CONFIG = """
models:
  - name: assistant
    deployments:
      - {engine: mock, name: quick, tier: cpu, context_window: 8192}
"""


@pytest.fixture(scope="module")
def mocked() -> Iterator[Fabric]:
    for fabric in new_fabric():
        yield fabric.start(CONFIG)


def test_a_run_is_saved_compared_and_shown_over_time(mocked: Fabric) -> None:
    ran = mocked.command("bench", "run", "--deployment", "quick", "--requests", "6", "--concurrency", "2", "--json")
    assert ran.returncode == 0, ran.stderr
    done = json.loads(ran.stdout)
    (point,) = done["points"]
    assert (point["deployment"], point["concurrency"], point["requests"]) == ("quick", 2, 6)
    assert point["error_rate"] == 0 and point["first_token_p50_s"] > 0 and point["output_tokens_per_s"] > 0
    assert done["about"]["machine"] and done["about"]["fabric"]

    assert mocked.command("bench", "save", "before").returncode == 0
    same = mocked.command("bench", "compare", "before", "--json")
    assert same.returncode == 0, same.stderr
    assert {finding["verdict"] for finding in json.loads(same.stdout)} <= {"same", "unknown"}

    path = mocked.data / "bench" / "before.json"
    run = json.loads(path.read_text())
    for sample in run["points"][0]["samples"]:
        sample["first_token_s"] /= 1000
    path.write_text(json.dumps(run))
    worse = mocked.command("bench", "compare", "before")
    assert worse.returncode == 1
    (line,) = [line for line in worse.stdout.splitlines() if line.endswith("worse")]
    assert "first_token_s" in line and "%" in line

    shown = mocked.command("bench", "trend")
    assert shown.returncode == 0 and "chat: quick, 2 at once" in shown.stdout and " before " in shown.stdout


def test_a_wrong_call_says_what_there_is(mocked: Fabric) -> None:
    for arguments, said in (
        (("run", "--deployment", "none"), "there is quick"),
        (("run", "--workload", "nothing.json"), "long-prompt"),
        (("compare", "never"), "fabric bench run"),
        (("save", "../x"), "letters"),
    ):
        ended = mocked.command("bench", *arguments)
        assert ended.returncode == 78 and said in ended.stderr, ended.stderr
    (mocked.folder / "wrong.json").write_text('{"bodies": []}')
    assert "bodies" in mocked.command("bench", "run", "--workload", "wrong.json").stderr
