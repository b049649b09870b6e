"""The manifests: what every pod must be, and that names, keys and labels in one file exist in another."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fabric.cli.entry import run
from fabric.contracts.secret import Secrets
from fabric.contracts.signed import Signer
from fabric.contracts.zones import WorkerKeys
from fabric.gateway.metrics import Metrics, Snapshot
from fabric.settings import load
from fabric.store.transitions import Room
from workers.engines.vllm_options import VllmOptions

OVERLAYS = ("local", "gpu")
APP = {"app.kubernetes.io/name": "inference-fabric"}


@pytest.fixture(scope="session")
def written(folder: Path) -> list[dict[str, Any]]:
    """Every resource as it is written, before kustomize."""
    files = sorted((folder / "kubernetes").rglob("*.yaml"))
    documents = [document for file in files for document in yaml.safe_load_all(file.read_text())]
    kinds = ("Kustomization", "Component")
    return [document for document in documents if "apiVersion" in document and document["kind"] not in kinds]


@pytest.fixture(scope="session", params=OVERLAYS)
def built(request: pytest.FixtureRequest, folder: Path, tool: Any) -> list[dict[str, Any]]:
    """An overlay as ``kubectl apply -k`` would send it."""
    kubectl = tool("kubectl", "Debian: kubernetes-client")
    version = subprocess.run([kubectl, "version", "--client", "-o", "json"], capture_output=True, check=True).stdout
    if int(json.loads(version)["clientVersion"]["minor"].rstrip("+")) < 21:
        pytest.skip("kubectl is older than 1.21: its kustomize knows no components")
    overlay = folder / "kubernetes/overlays" / request.param
    text = subprocess.run([kubectl, "kustomize", str(overlay)], capture_output=True, text=True, check=True).stdout
    return list(yaml.safe_load_all(text))


def of(resources: list[dict[str, Any]], *kinds: str) -> Iterator[dict[str, Any]]:
    return (resource for resource in resources if resource["kind"] in kinds)


def pods(resources: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for resource in of(resources, "Deployment", "StatefulSet"):
        yield resource["metadata"]["name"], resource["spec"]["template"]


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def test_every_pod_is_hardened(written: list[dict[str, Any]]) -> None:
    for name, pod in pods(written):
        spec = pod["spec"]
        context = spec["securityContext"]
        assert context["runAsNonRoot"] is True and context["runAsUser"] > 0, name
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert spec["automountServiceAccountToken"] is False and spec["enableServiceLinks"] is False, name
        for container in containers(pod):
            own = container["securityContext"]
            assert own["readOnlyRootFilesystem"] is True and own["allowPrivilegeEscalation"] is False, name
            assert own["capabilities"] == {"drop": ["ALL"]}, name
            assert container["resources"]["requests"]["cpu"] and container["resources"]["limits"]["memory"], name
            assert not container["image"].endswith(":latest"), name


def test_every_role_is_there_with_probes_and_a_disruption_budget(written: list[dict[str, Any]]) -> None:
    roles = {"gateway", "scheduler", "recorder", "cpu-worker", "gpu-worker", "cloud-worker"}
    found = {resource["metadata"]["name"].removeprefix("fabric-") for resource in of(written, "Deployment")}
    assert found == roles
    budgets = {
        b["spec"]["selector"]["matchLabels"]["inference-fabric/role"] for b in of(written, "PodDisruptionBudget")
    }
    assert budgets == roles
    for name, pod in pods(written):
        for container in pod["spec"]["containers"]:
            assert {"startupProbe", "livenessProbe"} <= container.keys(), name


def test_probes_are_the_checks_of_the_images(compose: Any, written: list[dict[str, Any]]) -> None:
    for name, pod in pods(written):
        role = name.removeprefix("fabric-")
        [container] = pod["spec"]["containers"]
        if role == "gateway":
            assert container["livenessProbe"]["httpGet"]["path"] == "/health/live"
            assert container["readinessProbe"]["httpGet"]["path"] == "/health/ready"
        elif role in compose.services and "build" in compose.services[role]:
            check = compose.services[role]["healthcheck"]["test"][1:]
            assert container["startupProbe"]["exec"]["command"] == check
            assert container["livenessProbe"]["exec"]["command"] == [*check, "--live"]


def test_commands_exist(written: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    for _, pod in pods(written):
        for container in containers(pod):
            if container["image"].startswith("inference-fabric-"):
                assert run([*container["args"], "--help"]) == 0
    assert "Usage: fabric" in capsys.readouterr().out


def test_pods_get_more_time_than_they_take_to_drain(written: list[dict[str, Any]], folder: Path) -> None:
    base = yaml.safe_load((folder / "kubernetes/base/kustomization.yaml").read_text())
    [literals] = [g["literals"] for g in base["configMapGenerator"] if g["name"] == "fabric-environment"]
    drain_s = float(dict(literal.split("=") for literal in literals)["FABRIC_DRAIN_S"])
    assert drain_s >= 600, "requests take ten minutes at most, unless they name a deadline"
    for resource in of(written, "Deployment"):
        spec = resource["spec"]["template"]["spec"]
        assert spec["terminationGracePeriodSeconds"] >= drain_s + 30


def test_variables_are_known(written: list[dict[str, Any]], folder: Path, known_variables: set[str]) -> None:
    base = yaml.safe_load((folder / "kubernetes/base/kustomization.yaml").read_text())
    common = {literal.partition("=")[0] for g in base["configMapGenerator"] for literal in g.get("literals", [])}
    own = {
        variable["name"]
        for _, pod in pods(written)
        for container in containers(pod)
        if container["image"].startswith("inference-fabric-")
        for variable in container["env"]
    }
    assert common | own - {"HF_TOKEN"} <= known_variables
    secret = next(g for g in overlay(folder, "local")["secretGenerator"] if g["name"] == "fabric-store")
    assert {literal.partition("=")[0] for literal in secret["literals"]} - {"POSTGRES_PASSWORD"} <= known_variables


def overlay(folder: Path, name: str) -> dict[str, Any]:
    written: dict[str, Any] = yaml.safe_load((folder / f"kubernetes/overlays/{name}/kustomization.yaml").read_text())
    return written


def test_the_ledgers_password_reaches_only_who_needs_it(written: list[dict[str, Any]]) -> None:
    for name, pod in pods(written):
        names = {variable["name"] for container in containers(pod) for variable in container.get("env", [])}
        labels = pod["metadata"]["labels"]
        needs = name in ("fabric-gateway", "fabric-recorder")
        assert ("FABRIC_DATABASE_URL" in names) == needs == ("inference-fabric/uses-ledger" in labels), name


def test_the_catalogues_load(folder: Path) -> None:
    base = load(folder / "kubernetes/base/fabric.yaml", {})
    assert [d.tier for d in base.catalog.by_deployment.values()] == ["cpu"]
    gpu = load(folder / "kubernetes/overlays/gpu/fabric.yaml", {})
    assert [d.tier for d in gpu.catalog.by_deployment.values()] == ["cpu", "gpu", "cloud"]


def test_nothing_is_reachable_but_by_name(written: list[dict[str, Any]]) -> None:
    policies = {policy["metadata"]["name"]: policy["spec"] for policy in of(written, "NetworkPolicy")}
    nothing = policies["fabric-nothing"]
    assert nothing == {"podSelector": {"matchLabels": APP}, "policyTypes": ["Ingress", "Egress"]}
    for name, pod in pods(written):
        assert APP.items() <= pod["metadata"]["labels"].items(), f"{name} would escape the policy"
    open_to_the_world = {
        policy["podSelector"]["matchLabels"]["inference-fabric/role"]
        for policy in policies.values()
        for rule in policy.get("egress", [])
        for peer in rule["to"]
        if peer.get("ipBlock", {}).get("cidr") == "0.0.0.0/0"
    }
    assert open_to_the_world == {"gpu-worker", "cloud-worker"}
    for policy in policies.values():
        assert all(rule["from"] and rule["ports"] for rule in policy.get("ingress", []))
        assert all(rule["to"] and rule["ports"] for rule in policy.get("egress", []))


def test_gpu_workers_take_gpus_and_scale_with_the_backlog_of_their_tier(written: list[dict[str, Any]]) -> None:
    worker = next(r for r in of(written, "Deployment") if r["metadata"]["name"] == "fabric-gpu-worker")
    pod = worker["spec"]["template"]["spec"]
    startup = pod["containers"][0]["startupProbe"]
    worker_waits_s = VllmOptions.model_fields["start_timeout_s"].default
    assert startup["periodSeconds"] * startup["failureThreshold"] >= worker_waits_s
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert "replicas" not in worker["spec"], "KEDA says how many"
    [scaled] = of(written, "ScaledObject")
    spec = scaled["spec"]
    assert spec["scaleTargetRef"] == {"name": "fabric-gpu-worker"} and spec["minReplicaCount"] == 0
    [trigger] = spec["triggers"]
    assert trigger["type"] == "prometheus" and trigger["metricType"] == "Value"
    assert trigger["metadata"]["query"] == 'max(fabric_backlog_seconds{tier="gpu"})'
    assert all(isinstance(value, str) for value in trigger["metadata"].values())
    assert trigger["metadata"]["ignoreNullValues"] == "false", "a lost Prometheus must not scale to zero"


def test_the_metric_that_workers_scale_with_is_exported() -> None:
    text = Metrics().exposition(Snapshot(Room((), {}, ()), Counter(), 0, {"gpu": 0.0})).decode()
    assert 'fabric_backlog_seconds{tier="gpu"} 0.0' in text


def test_valkey_is_started_as_in_compose(compose: Any, written: list[dict[str, Any]]) -> None:
    pod = next(pod for name, pod in pods(written) if name == "fabric-valkey")
    assert pod["spec"]["containers"][0]["args"] == compose.services["valkey"]["command"]
    assert pod["spec"]["containers"][0]["image"] == compose.services["valkey"]["image"]
    pod = next(pod for name, pod in pods(written) if name == "fabric-postgres")
    assert pod["spec"]["containers"][0]["image"] == compose.services["postgres"]["image"]


def test_images_have_the_names_that_compose_builds(compose: Any, folder: Path, written: list[dict[str, Any]]) -> None:
    ours = {service["image"].partition(":")[0] for service in compose.of_ours.values()}
    used = {c["image"] for _, pod in pods(written) for c in containers(pod) if not c["image"].startswith("docker.io/")}
    assert used <= ours
    assert {image["name"] for image in overlay(folder, "gpu")["images"]} == used


#: Secrets that whoever installs it makes.
_BY_HAND = ("fabric-store", "fabric-zone-keys", "fabric-provider-keys", "fabric-huggingface")


def test_what_is_referred_to_exists(built: list[dict[str, Any]]) -> None:
    there = {(resource["kind"], resource["metadata"]["name"]) for resource in built}
    by_hand = {("Secret", name) for name in _BY_HAND}
    for name, pod in pods(built):
        text = yaml.safe_dump(pod)
        claims = re.findall(r"claimName: (\S+)", text)
        configs = re.findall(r"configMap(?:Ref)?:\n\s+name: (\S+)", text)
        secrets = re.findall(r"secretKeyRef:\n\s+key: \S+\n\s+name: (\S+)", text)
        wanted = {
            *(("PersistentVolumeClaim", claim) for claim in claims),
            *(("ConfigMap", config) for config in configs),
            *(("Secret", secret) for secret in secrets),
            ("ServiceAccount", pod["spec"]["serviceAccountName"]),
        }
        assert wanted <= there | by_hand, name
        assert {resource["metadata"].get("namespace", "fabric") for resource in built} == {"fabric"}
        mounted = {mount["name"] for container in containers(pod) for mount in container["volumeMounts"]}
        templates = {"data"} if name in ("fabric-valkey", "fabric-postgres") else set()
        assert mounted == {volume["name"] for volume in pod["spec"].get("volumes", [])} | templates, name


#: Deployment -> whose user it has.
_USERS = {
    **{f"fabric-{role}": f"fabric-access-{role}" for role in ("gateway", "scheduler", "recorder")},
    **{f"fabric-{tier}-worker": f"fabric-access-worker-{tier}" for tier in ("cpu", "gpu", "cloud")},
}


def test_with_least_rights_each_role_has_its_own_user(folder: Path, tool: Any, tmp_path: Path) -> None:
    kubectl = tool("kubectl", "Debian: kubernetes-client")
    copied = shutil.copytree(folder / "kubernetes", tmp_path / "kubernetes")
    file = copied / "overlays/gpu/kustomization.yaml"
    with_it = yaml.safe_load(file.read_text())
    with_it["components"].append("../../components/least-rights")
    file.write_text(yaml.safe_dump(with_it))
    said = subprocess.run([kubectl, "kustomize", str(file.parent)], capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    seen = set()
    for name, pod in pods(list(yaml.safe_load_all(said.stdout))):
        seen.add(name)
        for container in containers(pod):
            for variable in container["env"]:
                secret = variable.get("valueFrom", {}).get("secretKeyRef")
                if variable["name"] in ("FABRIC_REDIS_URL", "FABRIC_BROKER_URL", "FABRIC_ZONE_KEYS"):
                    assert (secret["name"], secret["key"]) == (_USERS[name], variable["name"])
    assert seen == set(_USERS)


def test_the_local_clusters_keys_are_of_its_secret(folder: Path) -> None:
    made = {secret["name"]: secret["literals"] for secret in overlay(folder, "local")["secretGenerator"]}
    secret = next(one.partition("=")[2] for one in made["fabric-store"] if one.startswith("FABRIC_SECRET="))
    secrets = Secrets([secret])
    assert made["fabric-zone-keys"] == [
        f"local={WorkerKeys.of(secrets, ['local']).dump()}",
        f"scheduler={Signer.of(secrets).dump()}",
    ]


def test_selectors_select(built: list[dict[str, Any]]) -> None:
    labels = [pod["metadata"]["labels"] for _, pod in pods(built)]
    for resource in of(built, "Deployment", "StatefulSet", "PodDisruptionBudget"):
        selector = resource["spec"]["selector"]["matchLabels"]
        assert any(selector.items() <= own.items() for own in labels), resource["metadata"]["name"]
    for service in of(built, "Service"):
        assert any(service["spec"]["selector"].items() <= own.items() for own in labels)


def test_kubernetes_takes_it(built: list[dict[str, Any]], tmp_path: Path, tool: Any) -> None:
    checker = tool("kubernetes-validate", "PyPI: kubernetes-validate")
    file = tmp_path / "built.yaml"
    file.write_text(yaml.safe_dump_all(resource for resource in built if resource["kind"] != "ScaledObject"))
    said = subprocess.run([checker, "--strict", file], capture_output=True, text=True)
    assert said.returncode == 0, said.stdout + said.stderr
