"""``fabric security init``: what it writes, for whom, and what it leaves alone."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import stat
from pathlib import Path

import pytest

from fabric.cli.entry import run
from fabric.contracts.secret import Secrets
from fabric.contracts.signed import Signer
from fabric.contracts.zones import WorkerKeys
from fabric.security import ROLES


@pytest.fixture(autouse=True)
def alone(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    for name in ("FABRIC_REDIS_URL", "FABRIC_BROKER_URL", "FABRIC_CONFIG", "FABRIC_SECRET", "FABRIC_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)


EXPECTED = {"redis.acl", "rabbitmq.json", *(f"{role.name}.env" for role in ROLES)}


def init(out: Path, *options: str) -> int:
    return run(["security", "init", "--out", str(out), *options])


def variables(path: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in path.read_text().splitlines() if not line.startswith("#"))


def test_files_are_their_owners_alone(tmp_path: Path) -> None:
    out = tmp_path / "access"
    assert init(out, "--rabbitmq", "amqps://broker:5671/fabric") == 0
    assert {path.name for path in out.iterdir()} == EXPECTED
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in out.iterdir()} == {0o600}


def test_the_servers_files_hold_no_password(tmp_path: Path) -> None:
    init(tmp_path, "--rabbitmq", "amqps://broker:5671/fabric")
    acl, rabbitmq = (tmp_path / "redis.acl").read_text(), json.loads((tmp_path / "rabbitmq.json").read_text())
    hashes = {user["name"]: base64.b64decode(user["password_hash"]) for user in rabbitmq["users"]}
    passwords = set()
    for role in ROLES:
        for name, url in variables(tmp_path / f"{role.name}.env").items():
            if not name.endswith("_URL"):
                continue
            user, password = re.findall(r"://([^:]+):([^@]+)@", url)[0]
            passwords.add(password)
            assert user == f"fabric-{role.name}"
            assert len(password) == 43, "256 bits"
            assert password not in acl + json.dumps(rabbitmq)
            if name == "FABRIC_REDIS_URL":
                assert f"user {user} on #{hashlib.sha256(password.encode()).hexdigest()} " in acl
            else:
                salt, digest = hashes[user][:4], hashes[user][4:]
                assert digest == hashlib.sha256(salt + password.encode()).digest()
    assert len(passwords) == len(ROLES) + len(hashes), "each its own"


def test_without_rabbitmq_there_is_nothing_for_it(tmp_path: Path) -> None:
    assert init(tmp_path, "--redis", "rediss://store.internal:6379/0") == 0
    assert {path.name for path in tmp_path.iterdir()} == EXPECTED - {"rabbitmq.json"}
    assert list(variables(tmp_path / "worker-gpu.env")) == ["FABRIC_REDIS_URL", "FABRIC_ZONE_KEYS"]
    assert variables(tmp_path / "worker-gpu.env")["FABRIC_REDIS_URL"].endswith("@store.internal:6379/0")


def test_what_is_there_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "worker-cpu.env").write_text("mine")
    assert init(tmp_path) == 78
    assert "is there already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["worker-cpu.env"]


@pytest.mark.parametrize(
    "options", [("--redis", "http://x"), ("--redis", "redis://me:secret@x"), ("--rabbitmq", "amqp://me:secret@x/y")]
)
def test_urls_are_places_without_users(tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str]) -> None:
    assert init(tmp_path / "out", *options) == 2
    assert "secret" not in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_json_names_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert init(tmp_path / "out", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {"out": str(tmp_path / "out"), "files": sorted(EXPECTED - {"rabbitmq.json"})}


class TestZoneKeys:
    def test_workers_get_keys_and_only_who_seals_and_hashes_gets_the_secret(self, tmp_path: Path) -> None:
        init(tmp_path)
        secret = variables(tmp_path / "gateway.env")["FABRIC_SECRET"]
        holders = {
            role.name for role in ROLES if variables(tmp_path / f"{role.name}.env").get("FABRIC_SECRET") == secret
        }
        assert holders == {"gateway", "recorder"}
        for tier, zone in (("cpu", "local"), ("gpu", "local"), ("cloud", "cloud")):
            keys = WorkerKeys.parse(variables(tmp_path / f"worker-{tier}.env")["FABRIC_ZONE_KEYS"])
            assert keys == WorkerKeys.of(Secrets([secret]), [zone])

    def test_the_scheduler_alone_can_sign(self, tmp_path: Path) -> None:
        init(tmp_path)
        signer = Signer.of(Secrets([variables(tmp_path / "gateway.env")["FABRIC_SECRET"]]))
        assert variables(tmp_path / "scheduler.env")["FABRIC_ZONE_KEYS"] == signer.dump()
        private = signer.dump().partition(":")[2]
        holders = [role.name for role in ROLES if private in (tmp_path / f"{role.name}.env").read_text()]
        assert holders == ["scheduler"]

    def test_printed_where_the_secret_is(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert run(["security", "zone-keys", "local"]) != 0
        monkeypatch.setenv("FABRIC_SECRET", "s" * 32)
        capsys.readouterr()
        assert run(["security", "zone-keys", "local"]) == 0
        assert WorkerKeys.parse(capsys.readouterr().out) == WorkerKeys.of(Secrets(["s" * 32]), ["local"])
        assert run(["security", "zone-keys", "scheduler"]) == 0
        assert capsys.readouterr().out == Signer.of(Secrets(["s" * 32])).dump() + "\n"
        assert run(["security", "zone-keys", "scheduler", "local"]) != 0
        assert "for the scheduler alone" in capsys.readouterr().err
        assert run(["security", "zone-keys", "nowhere"]) != 0
        assert "there is local" in capsys.readouterr().err

    def test_a_file_for_each_zone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FABRIC_DATA_DIR", str(tmp_path / "data"))
        for _ in range(2):
            assert run(["security", "zone-keys", "--into", str(tmp_path / "keys")]) == 0
        file = tmp_path / "keys" / "local" / "zone-keys"
        assert [path.name for path in file.parent.iterdir()] == ["zone-keys"]
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        secret = (tmp_path / "data" / "secret").read_text().strip()
        assert WorkerKeys.parse(file.read_text()) == WorkerKeys.of(Secrets([secret]), ["local"])
        signer = Signer.parse((tmp_path / "keys" / "scheduler" / "zone-keys").read_text())
        assert signer.verifier == Signer.of(Secrets([secret])).verifier
