"""What must be true of every container, whoever adds one."""

from __future__ import annotations

import re
import subprocess
from graphlib import TopologicalSorter
from typing import Any

import pytest
import yaml

from fabric.settings import load
from fabric.store import embedded
from workers.engines import build
from workers.engines.api_options import options_of
from workers.engines.vllm_options import VllmOptions, missing_for_tools

#: Of other projects' images: variables that are theirs, not ours.
FOREIGN = re.compile(r"^(RABBITMQ|POSTGRES|GF)_[A-Z_]+$")
ONE_SHOTS = {"migrate", "zone-keys"}


def seconds(duration: str) -> float:
    units = {"h": 3600, "m": 60, "s": 1}
    return sum(float(number) * units[unit] for number, unit in re.findall(r"(\d+)([hms])", duration))


def test_the_roles_and_profiles_are_there(compose: Any) -> None:
    always = {name for name, service in compose.services.items() if "profiles" not in service}
    assert always == {"valkey", "migrate", "zone-keys", "api", "scheduler", "recorder", "cpu-worker"}
    profiles = {name: service["profiles"] for name, service in compose.services.items() if "profiles" in service}
    assert profiles == {
        "gpu-worker": ["gpu"],
        "cloud-worker": ["cloud"],
        "rabbitmq": ["rabbitmq"],
        "postgres": ["postgres"],
        **{name: ["monitoring"] for name in ("prometheus", "grafana", "flower", "flower-door")},
    }


def test_every_container_is_hardened(compose: Any) -> None:
    for name, service in compose.services.items():
        user, _, group = service["user"].partition(":")
        assert int(user) > 0 and group.isdigit(), name
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"] and "cap_add" not in service, name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service.keys() & {"privileged", "network_mode", "pid", "ipc", "devices", "userns_mode"}, name
        assert service["init"] is True, name
        limits = service["deploy"]["resources"]["limits"]
        assert limits["memory"] and limits["pids"], name
        assert any(line.startswith("/tmp:size=") for line in service["tmpfs"]), name
        assert service["logging"]["options"]["max-size"], name


def test_every_container_comes_back_and_says_how_it_is(compose: Any) -> None:
    for name, service in compose.services.items():
        if name in ONE_SHOTS:
            assert service["restart"].startswith("on-failure:") and service["healthcheck"] == {"disable": True}
            continue
        assert service["restart"] == "unless-stopped", name
        check = service["healthcheck"]
        assert check["test"][0] in ("CMD", "CMD-SHELL") and check["start_period"] and check["retries"] >= 3, name
        assert seconds(check["timeout"]) < seconds(check["interval"]), name


def test_docker_waits_longer_than_a_process_drains(compose: Any) -> None:
    for name, service in compose.of_ours.items():
        drain_s = float(compose.environment(name)["FABRIC_DRAIN_S"])
        assert seconds(service["stop_grace_period"]) >= drain_s + 15, name
    # Requests take ten minutes at most, unless they name a deadline of their own.
    assert float(compose.environment("cpu-worker")["FABRIC_DRAIN_S"]) >= 600


def test_nothing_is_named_so_that_everything_scales(compose: Any) -> None:
    assert not any("container_name" in service for service in compose.services.values())
    for name in ("cpu-worker", "gpu-worker", "cloud-worker", "scheduler", "recorder"):
        assert not compose.services[name].keys() & {"ports", "hostname"}, name


def test_ports_are_on_loopback_and_few(compose: Any) -> None:
    published = {name: service["ports"] for name, service in compose.services.items() if "ports" in service}
    assert published == {
        "api": ["127.0.0.1:8080:8080"],
        "grafana": ["127.0.0.1:3000:3000"],
        "flower-door": ["127.0.0.1:5555:5555"],
    }
    # Only the gateway's address may be changed by a variable; the others' pages are for this machine.
    assert compose.text.count("PUBLISH_ADDRESS") == 2


def test_the_store_is_out_of_reach_and_prompts_stay_in(compose: Any) -> None:
    networks = compose.file["networks"]
    assert networks["store"] == {"internal": True} and networks["monitoring"] == {"internal": True}
    assert networks["door"]["driver_opts"]["com.docker.network.bridge.enable_ip_masquerade"] == "false"
    on = {name: set(service["networks"]) for name, service in compose.services.items()}
    for name in ("valkey", "rabbitmq", "postgres", "scheduler", "recorder", "cpu-worker", "migrate"):
        assert on[name] == {"store"}, name
    assert {name for name in on if "outside" in on[name]} == {"gpu-worker", "cloud-worker"}
    # Who is called from outside can't call out, and the other way round.
    assert not any({"door", "outside"} <= joined for joined in on.values())
    assert {name for name, service in compose.services.items() if "ports" in service} == {
        name for name in on if "door" in on[name]
    }


def test_dependencies_wait_for_health_and_stop_in_the_order_of_fabric_up(compose: Any) -> None:
    graph: dict[str, set[str]] = {}
    for name, service in compose.services.items():
        needs = service.get("depends_on", {})
        graph[name] = set(needs)
        for need, how in needs.items():
            wanted = "service_completed_successfully" if need in ONE_SHOTS else "service_healthy"
            assert how["condition"] == ("service_started" if need.endswith("-worker") else wanted), (name, need)
            off = set(compose.services[need].get("profiles", [])) - set(service.get("profiles", []))
            assert how.get("required", True) is not bool(off), (name, need)
    order = list(TopologicalSorter(graph).static_order())
    for worker in ("cpu-worker", "gpu-worker", "cloud-worker"):
        assert order.index("valkey") < order.index("scheduler") < order.index(worker) < order.index("api")
        assert order.index("recorder") < order.index(worker)


def test_valkey_keeps_what_the_embedded_one_keeps(compose: Any, tmp_path: Any) -> None:
    command = compose.services["valkey"]["command"]
    ours = embedded.server_command(tmp_path / "s", tmp_path)

    def option(arguments: list[str], name: str) -> str:
        return arguments[arguments.index(name) + 1]

    for name in ("--appendonly", "--save", "--maxmemory-policy"):
        assert option(command, name) == option(ours, name)
    assert option(command, "--appendfsync") == "always", "everysec may answer before it has written"
    memory = compose.services["valkey"]["deploy"]["resources"]["limits"]["memory"]
    assert (option(command, "--maxmemory"), memory) == ("1gb", "2g"), "rewriting the file may take as much again"


def test_gpus_are_reserved_and_shared_out_by_one_gpu(compose: Any) -> None:
    service = compose.services["gpu-worker"]
    worker_waits_s = VllmOptions.model_fields["start_timeout_s"].default
    assert seconds(service["healthcheck"]["start_period"]) >= worker_waits_s
    [device] = service["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["count"]) == ("nvidia", "all") and "gpu" in device["capabilities"]
    assert service["entrypoint"] == ["one-gpu", "fabric"]
    assert "gpus:/run/gpus" in service["volumes"]


def test_secrets_reach_only_who_needs_them(compose: Any) -> None:
    for name in compose.of_ours:
        has_ledger = "FABRIC_DATABASE_URL" in compose.environment(name)
        assert has_ledger == (name in ("api", "recorder", "migrate", "zone-keys")), name
        keys = {volume for volume in compose.services[name].get("volumes", ()) if volume.startswith("keys-")}
        mounted = {"cpu-worker": "local", "gpu-worker": "local", "cloud-worker": "cloud", "scheduler": "scheduler"}
        if name in mounted:
            assert keys == {f"keys-{mounted[name]}:/keys:ro"}
        else:
            assert len(keys) == (3 if name == "zone-keys" else 0)
    assert [name for name, service in compose.services.items() if "env_file" in service] == ["cloud-worker"]


@pytest.mark.parametrize("name", ["rabbitmq", "grafana", "flower"])
def test_without_a_password_it_does_not_start(compose: Any, name: str) -> None:
    service = compose.services[name]
    assert service["entrypoint"] == ["/bin/sh", "-c"]
    [script] = service["command"]
    said = subprocess.run(["/bin/sh", "-c", script], env={"PATH": "/nowhere"}, capture_output=True, text=True)
    assert said.returncode == 78
    assert re.fullmatch(r"error: set [A-Z_]+(=user:password)? in \.env\n", said.stderr)


def test_our_variables_are_ours_and_foreign_ones_foreign(compose: Any, known_variables: set[str]) -> None:
    used = {name for service in compose.services for name in compose.environment(service)}
    ours = {name for name in used if name.startswith("FABRIC_")}
    assert ours <= known_variables
    others = used - ours - {"GPUS_PER_WORKER", "HF_TOKEN", "FLOWER_BASIC_AUTH", "METRICS_KEY"}
    assert all(FOREIGN.match(name) for name in others), others


def test_the_models_load_also_with_every_line_uncommented(
    folder: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (folder / "fabric.yaml").read_text()
    shipped = load(folder / "fabric.yaml", {})
    assert [d.tier for d in shipped.catalog.by_deployment.values()] == ["cpu"]
    whole = tmp_path / "fabric.yaml"
    whole.write_text(re.sub(r"(?m)^      #( -|  ) (?=[a-z])", lambda found: f"      {found[1].strip() or ' '} ", text))
    deployments = load(whole, {}).catalog.by_deployment.values()
    assert [d.tier for d in deployments] == ["cpu", "gpu", "cloud"]
    monkeypatch.setenv("OPENAI_API_KEY", "a-key")
    for deployment in deployments:
        if deployment.tier != "cpu":  # the CPU's engine reads its model at once
            assert build(deployment).deployment == deployment
        if deployment.engine == "vllm":
            assert missing_for_tools(deployment, options_of(deployment, VllmOptions)) is None
    assert load(whole, {"FABRIC_CPU_MODEL": "/models/a.gguf"}).catalog.by_deployment["assistant-cpu"].model


def test_the_file_for_several_machines_opens_the_store_and_nothing_else(folder: Any) -> None:
    assert yaml.safe_load((folder / "store-elsewhere.yaml").read_text()) == {"networks": {"store": {"internal": False}}}


def test_the_files_follow_the_compose_specification(folder: Any, tool: Any) -> None:
    checker = tool("check-jsonschema", "PyPI: check-jsonschema")
    files = [folder / "compose.yaml", folder / "store-elsewhere.yaml"]
    said = subprocess.run([checker, "--builtin-schema", "vendor.compose-spec", *files], capture_output=True, text=True)
    assert said.returncode == 0, said.stdout
