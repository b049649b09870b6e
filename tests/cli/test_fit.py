"""``fabric fit``: what it prints, for people and for programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fabric.cli.entry import EX_CONFIG, run
from fabric.settings.defaults import shipped_model

SHIPPED = str(shipped_model())
CONTRACT = {
    *("fits", "need_bytes", "have_bytes", "weights_bytes", "kv_bytes", "overhead_bytes"),
    *("max_context", "max_parallel", "advice"),
}


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert run(["fit", SHIPPED, "--json", *arguments]) == 0
    value: dict[str, Any] = json.loads(capsys.readouterr().out)
    return value


def test_the_contract(capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(capsys)
    assert found.keys() >= CONTRACT
    assert found["fits"] is True
    assert found["need_bytes"] == found["weights_bytes"] + found["kv_bytes"] + found["overhead_bytes"]
    assert (found["context"], found["max_context"], found["kv_bytes"]) == (1024, 1024, 4 * 4 * 64 * 2 * 1024)


def test_options(capsys: pytest.CaptureFixture[str]) -> None:
    one = as_json(capsys, "--context", "512")
    many = as_json(capsys, "--context", "512", "--parallel", "8", "--kv-type", "q8_0")
    assert many["kv_bytes"] == one["kv_bytes"] * 8 * 34 // 64
    given = as_json(capsys, "--gpu-memory", "0.5")
    assert (given["have_bytes"], given["memory"]) == (2**29, "GPU, as given")


def test_what_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    small = as_json(capsys, "--gpu-memory", "0.001")
    assert small["fits"] is False
    assert (small["max_context"], small["max_parallel"]) == (0, 0)
    assert "doesn't fit with any setting" in small["advice"]
    wide = as_json(capsys, "--parallel", "256", "--gpu-memory", "0.25")
    assert wide["fits"] is False and f"--parallel {wide['max_parallel']}" in wide["advice"]
    assert as_json(capsys, "--parallel", str(wide["max_parallel"]), "--gpu-memory", "0.25")["fits"] is True


def test_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fit", SHIPPED]) == 0
    shown = capsys.readouterr().out
    for part in ("weights", "KV cache (f16, 2048 bytes per token)", "compute buffers", "runtime", "It fits"):
        assert part in shown


@pytest.mark.parametrize(
    ("model", "says"),
    [("/nowhere/model.gguf", "doesn't exist"), (__file__, "isn't a GGUF file"), (str(Path(__file__).parent), "config")],
)
def test_what_is_not_a_model(capsys: pytest.CaptureFixture[str], model: str, says: str) -> None:
    assert run(["fit", model]) == EX_CONFIG
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong", [("--kv-type", "q9"), ("--context", "0"), ("--parallel", "-1"), ("--gpu-memory", "0")]
)
def test_wrong_calls(wrong: tuple[str, str]) -> None:
    assert run(["fit", SHIPPED, *wrong]) == 2


def test_what_the_engine_can_not_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fit", SHIPPED, "--kv-type", "fp8"]) == EX_CONFIG
    assert run(["fit", SHIPPED, "--parallel", "257"]) == EX_CONFIG
    assert "at most 256" in capsys.readouterr().err
