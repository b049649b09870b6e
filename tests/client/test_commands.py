"""The commands that use a fabric, against a server on loopback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fabric.cli.entry import run

LINES = "".join(
    f'{{"custom_id": "{n}", "method": "POST", "url": "/v1/chat/completions", "body": {{}}}}\n' for n in "abc"
)


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.jsonl").write_text(LINES)


@pytest.fixture
def job(api: Any) -> dict[str, Any]:
    tokens = [{"type": "token", "chunk": {"choices": [{"delta": {"content": c}}]}} for c in ("Hel", "lo")]
    api.events = [{"type": "queued"}, *tokens, {"type": "succeeded"}]
    attempt = {"number": 1, "tier": "cpu", "deployment": "m-cpu", "outcome": "succeeded", "error": None}
    result = {"choices": [{"message": {"content": "Hello"}}]}
    api.job = {"id": "job_1", "state": "succeeded", "attempts": [attempt], "result": result}
    return dict(api.job)


def test_status_shows_the_workers_to_whom_may_see_them(api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    api.workers = [
        {
            **{"id": "worker_1", "tier": "cpu", "host": "box", "pid": 71, "started_at": 0, "draining": True},
            **{"slots": 4, "busy": 3},
        }
    ]
    assert run(["status"]) == 0
    shown = capsys.readouterr().out
    assert "worker_1  cpu   box   71 " in shown
    assert shown.splitlines()[-1].split()[-3:] == ["4", "3", "draining"]
    assert run(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["workers"] == api.workers
    api.workers = None
    assert run(["status"]) == 0
    assert "WORKER " not in capsys.readouterr().out


def test_submit_prints_the_answer(api: Any, job: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["submit", "hi", "--model", "m", "--max-tokens", "5", "--privacy", "restricted"]) == 0
    assert capsys.readouterr().out == "Hello\n"
    [(_, body)] = api.calls("POST", "/v1/jobs")
    assert body == {
        "endpoint": "/v1/chat/completions",
        "body": {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5},
        "fabric": {"privacy": "restricted"},
    }


def test_submit_streams(api: Any, job: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["submit", "hi", "--stream"]) == 0
    assert capsys.readouterr().out == "Hello\n"
    assert api.calls("POST", "/v1/jobs")[0][1]["body"]["stream"] is True


def test_submit_prints_json(api: Any, job: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["submit", "hi", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == job
    assert run(["submit", "hi", "--no-wait"]) == 0
    assert capsys.readouterr().out == "job_1\n"


def test_submit_takes_a_body_and_puts_options_over_it(api: Any, job: dict[str, Any]) -> None:
    Path("body.json").write_text('{"model": "m", "input": "x", "fabric": {"tags": ["t"], "priority": "batch"}}')
    command = ["submit", "--json-body", "body.json", "--endpoint", "/v1/embeddings", "--priority", "standard"]
    assert run(command) == 0
    [(_, body)] = api.calls("POST", "/v1/jobs")
    assert body["fabric"] == {"tags": ["t"], "priority": "standard"}
    assert body["body"] == {"model": "m", "input": "x"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "error: Give a PROMPT, or a body with --json-body."),
        (["hi", "--stream", "--no-wait"], "error: --stream shows the answer"),
    ],
)
def test_submit_refuses_what_makes_no_sense(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["submit", *arguments]) == 2
    assert capsys.readouterr().err.startswith(said)


def test_submit_fails_with_the_jobs_error(api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    api.job = {"id": "job_1", "state": "failed", "error": {"message": "The engine broke.", "code": "engine_error"}}
    assert run(["submit", "hi"]) == 1
    assert capsys.readouterr().err == "error: The engine broke.\n"


def test_batch_run_writes_both_files_once(api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["batch", "run", "in.jsonl", "-o", "out.jsonl"]) == 0
    assert [json.loads(line)["custom_id"] for line in Path("out.jsonl").read_bytes().split(b"\n") if line] == ["a", "b"]
    assert json.loads(Path("out.errors.jsonl").read_text())["custom_id"] == "c"
    assert "batch_1 completed: 2 answers in out.jsonl, 1 errors in out.errors.jsonl" in capsys.readouterr().err
    assert run(["batch", "run", "in.jsonl", "-o", "out.jsonl"]) == 0
    assert len(api.calls("POST", "/v1/files")) == len(api.calls("POST", "/v1/batches")) == 1


def test_batch_run_with_a_deadline_and_a_cap(api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["batch", "run", "in.jsonl", "-o", "out.jsonl", "--deadline", "2d", "--max-cost", "1.5"]) == 0
    ((_, sent),) = api.calls("POST", "/v1/batches")
    assert sent["fabric"] == {"deadline_s": 172_800.0, "max_cost_usd": 1.5}
    assert sent["completion_window"] == "2d"
    assert run(["batch", "run", "in.jsonl", "-o", "other.jsonl", "--deadline", "soon"]) == 2
    assert "give a time such as 90s" in capsys.readouterr().err


def test_batch_run_goes_on_after_it_was_interrupted(api: Any) -> None:
    api.looks = 10**9
    command = [sys.executable, "-m", "fabric.cli", "batch", "run", "in.jsonl", "-o", "out.jsonl"]
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environ) as process:
        assert process.stderr
        assert process.stderr.readline() == "batch_1: 0 of 3 lines\n"
        process.send_signal(signal.SIGINT)
        assert "batch_1 goes on: `fabric batch wait batch_1` waits again" in process.stderr.read()
        assert process.wait() == 130
    assert not Path("out.jsonl").exists()
    api.looks = 1
    assert run(["batch", "run", "in.jsonl", "-o", "out.jsonl"]) == 0
    assert Path("out.jsonl").exists()
    assert len(api.calls("POST", "/v1/batches")) == 1


def test_batch_run_that_died_before_it_knew_its_batch_makes_no_second_one(api: Any) -> None:
    assert run(["batch", "run", "in.jsonl", "-o", "out.jsonl"]) == 0
    checkpoint = Path("out.jsonl.batch.json")
    values = json.loads(checkpoint.read_text())
    checkpoint.write_text(json.dumps({**values, "batch_id": None}))
    assert run(["batch", "run", "in.jsonl", "-o", "out.jsonl"]) == 0
    first, second = api.calls("POST", "/v1/batches")
    assert first[0]["idempotency-key"] == second[0]["idempotency-key"]
    assert first[1] == second[1]


def test_batch_run_does_not_mix_up_inputs(api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["batch", "run", "in.jsonl", "-o", "out.jsonl"]) == 0
    Path("in.jsonl").write_text(LINES * 2)
    assert run(["batch", "run", "in.jsonl", "-o", "out.jsonl"]) == 1
    assert "out.jsonl.batch.json belongs to another input: remove it" in capsys.readouterr().err


def test_a_batch_that_failed_says_why(api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    errors = {"data": [{"code": "empty_file", "message": "The file has no lines."}]}
    api.batch = {**api.batch, "status": "failed", "errors": errors}
    assert run(["batch", "run", "in.jsonl", "-o", "out.jsonl"]) == 1
    assert capsys.readouterr().err.endswith("error: batch_1 failed. The file has no lines.\n")


def test_batch_wait_show_and_ls(api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["batch", "wait", "batch_1"]) == 0
    assert capsys.readouterr().out == "batch_1 completed\n"
    assert run(["batch", "show", "batch_1"]) == 0
    shown = capsys.readouterr().out
    assert "lines 3, ok 2, failed 1" in shown
    assert "a line took 0.50 s (p50), 1.00 s (p95); 3 tokens/s written over 2.0 s" in shown
    assert run(["batch", "ls"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["batch_1", "completed"]


def test_batch_cancel(api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["batch", "cancel", "batch_1"]) == 0
    assert capsys.readouterr().out == "batch_1 cancelled\n"


def test_jobs_ls_show_and_cancel(api: Any, job: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["jobs", "ls", "--limit", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [[f"job_{n}", "queued", "assistant"] for n in range(3)]
    assert run(["jobs", "ls", "--limit", "2", "--json"]) == 0
    assert [item["id"] for item in json.loads(capsys.readouterr().out)] == ["job_0", "job_1"]
    assert run(["jobs", "show", "job_1"]) == 0
    assert "attempt 1: succeeded at m-cpu (cpu)" in capsys.readouterr().out
    assert run(["jobs", "cancel", "job_1", "job_2"]) == 0
    assert capsys.readouterr().out == "job_1 cancelled\njob_2 cancelled\n"


def test_route_says_where_and_why(api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--privacy", "restricted", "--policy", "mine", "--deadline-s", "9", "--max-cost-usd", "0.5"]
    assert run(["route", "hi", "--model", "m", "--max-tokens", "5", *options]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[:2] == ["to m-cpu (cpu)", "policy local-first (rules abc)"]
    assert shown[3].split() == ["1", "m-cpu", "cpu", "0", "$0.000020", "0.25", "s", "-", "2.50", "s", "measured"]
    assert shown[4].endswith("no live worker")
    assert shown[5] == "not m-cloud: privacy (not there)"
    [(_, body)] = api.calls("POST", "/v1/route")
    fabric = {"privacy": "restricted", "policy": "mine", "deadline_s": 9.0, "max_cost_usd": 0.5}
    assert (body["model"], body["max_tokens"], body["fabric"]) == ("m", 5, fabric)
    assert api.calls("POST", "/v1/jobs") == []


def test_route_prints_json(api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["route", "hi", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == api.routed


def test_route_to_nowhere_says_what_the_request_would_get(api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    decision = {**api.routed["decision"], "plan": []}
    error = {"status": 422, "message": "Nothing is left."}
    api.routed = {"object": "route", "decision": decision, "chosen": None, "error": error}
    assert run(["route", "hi"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert (shown[0], shown[-1]) == ("nowhere", "it would be answered with 422: Nothing is left.")


def test_policy_explain_shows_the_jobs_decision(
    api: Any, job: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    api.job = {**job, "privacy": "internal", "decision": api.routed["decision"]}
    assert run(["policy", "explain", "job_1"]) == 0
    shown = capsys.readouterr().out
    assert "job_1 succeeded, label internal\npolicy local-first (rules abc)\n" in shown
    assert "not m-cloud: privacy (not there)\nattempt 1: succeeded at m-cpu (cpu)\n" in shown
    assert run(["policy", "explain", "job_1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["decision"] == api.routed["decision"]


def test_policy_explain_without_a_decision(api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    api.job = {"id": "job_1", "state": "queued", "decision": None}
    assert run(["policy", "explain", "job_1"]) == 1
    assert capsys.readouterr().err.startswith("error: There is no decision of job_1: it still waits for room.")


def test_policy_check_shows_what_a_file_says(capsys: pytest.CaptureFixture[str]) -> None:
    Path("f.yaml").write_text(
        "models:\n  - name: m\n    deployments: [{engine: mock, tier: cpu}, {engine: mock, tier: cloud}]\n"
        "policies: {mine: {kind: cheapest, max_latency_s: 20}}\ndefault_policy: mine\n"
    )
    assert run(["policy", "check", "f.yaml"]) == 0
    shown = capsys.readouterr().out
    assert ["mine", "(default)", "cheapest", "20", "s", "-", "-"] in [line.split() for line in shown.splitlines()]
    assert "m      internal      m-cpu, m-cloud\nm      confidential  m-cpu\n" in shown
    assert run(["policy", "check", "f.yaml", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["ok"], told["default_policy"]) == (True, "mine")
    assert told["policies"]["mine"] == {"kind": "cheapest", "max_latency_s": 20.0}
    assert told["places"][3] == {"model": "m", "privacy": "restricted", "deployments": ["m-cpu"]}


def test_policy_check_names_the_line_of_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    Path("f.yaml").write_text("policies:\n  mine:\n    knid: cheapest\n")
    assert run(["policy", "check", "f.yaml"]) == 78
    assert "f.yaml:3: unknown key `policies.mine.knid`; did you mean `kind`?" in capsys.readouterr().err


def test_policy_check_shows_rules_and_when_they_count(capsys: pytest.CaptureFixture[str]) -> None:
    Path("f.yaml").write_text(
        "models:\n  - name: m\n    deployments: [{engine: mock, tier: cpu}]\n"
        "rules:\n  - name: night\n    when: hour < 6\n    set: {priority: batch, policy: cheapest}\n"
    )
    assert run(["policy", "check", "f.yaml"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "night hour < 6 at the door and when placed set policy cheapest, priority batch" in shown
    assert run(["policy", "check", "f.yaml", "--json"]) == 0
    (rule,) = json.loads(capsys.readouterr().out)["rules"]
    assert rule == {"name": "night", "when": "hour < 6", "set": {"priority": "batch", "policy": "cheapest"}}


def test_policy_check_names_the_line_of_a_rule_that_can_never_count(capsys: pytest.CaptureFixture[str]) -> None:
    Path("f.yaml").write_text(
        "models:\n  - name: m\n    deployments: [{engine: mock, tier: cpu}]\n"
        'rules:\n  - {when: model == "mm", deny: "no"}\n  - {deny: "no"}\n  - {when: batch, deny: "no"}\n'
    )
    assert run(["policy", "check", "f.yaml"]) == 78
    said = capsys.readouterr().err
    assert "f.yaml:5: `rules[0]` is wrong: it can never match" in said
    assert "f.yaml:7: `rules[2]` is wrong: it is never reached: 'rule 2' before it" in said
