"""``fabric doctor``: what it finds, and what it says to do."""

from __future__ import annotations

import json
import socket
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis

from fabric.cli.entry import run
from fabric.contracts.worker import WorkerInfo
from fabric.ledger import upgrade
from fabric.settings.defaults import shipped_model
from fabric.settings.secret import secrets_of
from fabric.settings.settings import Settings
from fabric.store import Store, transitions

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import SmallDisk, Valkey

CONFIG = """
models:
  - name: assistant
    deployments:
      - {engine: mock, tier: gpu, name: here}
      - {engine: mock, tier: cpu, name: nowhere}
"""


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("FABRIC_REDIS_URL", "FABRIC_BROKER_URL", "FABRIC_DATABASE_URL", "FABRIC_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)


class Doctor:
    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str) -> tuple[int, list[dict[str, str]]]:
        status = run(["doctor", "--json", *arguments])
        shown = json.loads(self._capsys.readouterr().out)
        assert shown["healthy"] is (status == 0)
        return status, shown["findings"]


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Doctor:
    return Doctor(capsys)


def nobodys_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as opened:
        port: int = opened.getsockname()[1]
    return port


def of(findings: list[dict[str, str]], part: str, level: str) -> list[dict[str, str]]:
    return [finding for finding in findings if finding["part"] == part and finding["level"] == level]


def test_a_new_folder_is_healthy_and_stays_as_it_is(doctor: Doctor, tmp_path: Path) -> None:
    status, findings = doctor()
    assert status == 0
    assert {finding["level"] for finding in findings} == {"ok"}
    parts = {finding["part"] for finding in findings}
    assert parts >= {"software", "configuration", "data directory", "secret", "api", "store", "broker", "ledger"}
    assert "deployment assistant-cpu" in parts
    assert list(tmp_path.iterdir()) == []


def test_a_table_for_people(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FABRIC_REDIS_URL", f"redis://127.0.0.1:{nobodys_port()}/0")
    assert run(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert "FAIL  store" in shown
    assert "store: Start it, or mend FABRIC_REDIS_URL." in shown


def test_a_file_that_cannot_be_read_is_the_one_thing_told(doctor: Doctor, tmp_path: Path) -> None:
    (tmp_path / "fabric.yaml").write_text("modells: []\n")
    status, findings = doctor()
    assert status == 1
    (wrong,) = of(findings, "configuration", "error")
    assert "fabric.yaml:1" in wrong["todo"]


def test_stores_and_brokers_that_do_not_answer(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    store, broker = nobodys_port(), nobodys_port()
    monkeypatch.setenv("FABRIC_REDIS_URL", f"redis://127.0.0.1:{store}/0")
    monkeypatch.setenv("FABRIC_BROKER_URL", f"amqp://guest:hush@127.0.0.1:{broker}//")
    status, findings = doctor()
    assert status == 1
    assert "FABRIC_REDIS_URL" in of(findings, "store", "error")[0]["todo"]
    assert "FABRIC_BROKER_URL" in of(findings, "broker", "error")[0]["todo"]
    assert of(findings, "workers", "error")
    assert "hush" not in json.dumps(findings)


def test_a_store_that_may_drop_jobs(doctor: Doctor, valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FABRIC_REDIS_URL", valkey.url)
    with redis.Redis.from_url(valkey.url) as server:
        server.config_set("maxmemory", "500mb")
        server.config_set("maxmemory-policy", "allkeys-lru")
        try:
            status, findings = doctor()
        finally:
            server.config_set("maxmemory", "0")
            server.config_set("maxmemory-policy", "noeviction")
    assert status == 1
    assert "noeviction" in of(findings, "store", "error")[0]["todo"]
    assert any(finding["said"].startswith("Valkey") for finding in of(findings, "store", "ok"))


@pytest.mark.parametrize(
    ("content", "level", "said"),
    [
        (b"*1\r\n$4\r\nPING\r\n", "ok", "isn't running"),
        (b"\0\0*1\r\n$4\r\nPING\r\n", "warning", "nothing is lost"),
        (b"*1\r\n$4\r\nPI\0\0\0", "warning", "cuts them off"),
        (b"*1\r\n$4\r\nPING\r\nnonsense", "error", "8 bytes from 14 on"),
    ],
)
def test_what_the_embedded_store_has_on_disk(
    doctor: Doctor, tmp_path: Path, content: bytes, level: str, said: str
) -> None:
    folder = tmp_path / ".fabric" / "valkey" / "appendonlydir"
    folder.mkdir(parents=True)
    (folder / "appendonly.aof.manifest").write_text("file appendonly.aof.1.incr.aof seq 1 type i\n")
    (folder / "appendonly.aof.1.incr.aof").write_bytes(content)
    _, findings = doctor()
    (found,) = of(findings, "store", level)
    assert said in found["said"]
    assert ("valkey-check-aof" in found["todo"]) is (level == "error")
    assert (folder / "appendonly.aof.1.incr.aof").read_bytes() == content


def test_a_disk_without_the_room_that_is_kept_back(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FABRIC_DISK_RESERVE_MB", str(2**40))
    status, findings = doctor()
    assert status == 1
    assert "FABRIC_DISK_RESERVE_MB" in of(findings, "data directory", "error")[0]["todo"]
    monkeypatch.setenv("FABRIC_REDIS_URL", f"redis://127.0.0.1:{nobodys_port()}/0")
    assert not of(doctor()[1], "data directory", "error")


def test_a_store_that_cannot_write(
    doctor: Doctor, small_disk: SmallDisk, new_valkey: Callable[..., Valkey], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = new_valkey(options=("--dir", str(small_disk.folder)))
    monkeypatch.setenv("FABRIC_REDIS_URL", server.url)
    small_disk.fill()
    with redis.Redis.from_url(server.url) as connection, pytest.raises(redis.ResponseError, match="MISCONF"):
        for number in range(100):
            connection.set(f"full-{number}", "x" * 5000)
    status, findings = doctor()
    assert status == 1
    assert "BGREWRITEAOF" in of(findings, "store", "error")[0]["todo"]
    server.kill()


def test_deployments_without_a_worker(
    doctor: Doctor, valkey: Valkey, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FABRIC_REDIS_URL", valkey.url)
    (tmp_path / "fabric.yaml").write_text(CONFIG)
    worker = WorkerInfo("worker_1", "gpu", "host", 1, 0, slots={"here": 1}, capacity={"here": 2}, running={"here": 0})
    store(transitions.heartbeat(worker, []))
    status, findings = doctor()
    assert status == 0
    (alone,) = of(findings, "workers", "warning")
    assert "nowhere" in alone["said"]
    assert "fabric worker cpu" in alone["todo"]


def test_models_and_keys(doctor: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "readable").write_text("hush-hush")
    (tmp_path / "readable").chmod(0o644)
    (tmp_path / "fabric.yaml").write_text("""
models:
  - name: assistant
    deployments:
      - {engine: llamacpp, tier: cpu, name: gone, model: missing.gguf}
      - {engine: openai, tier: cloud, name: set, model: a-model-of-ours, api_key_env: A_KEY}
      - {engine: openai, tier: cloud, name: unset, model: gpt-4o, api_key_env: NO_KEY}
      - {engine: openai, tier: cloud, name: shown, model: gpt-4o, api_key_file: readable}
""")
    monkeypatch.setenv("A_KEY", "hush-hush")
    status, findings = doctor()
    assert status == 1
    assert of(findings, "deployment gone", "error")
    assert of(findings, "deployment set", "ok")
    assert "NO_KEY" in of(findings, "deployment unset", "warning")[0]["todo"]
    assert "chmod 600" in of(findings, "deployment shown", "warning")[0]["todo"]
    assert [f["said"] for f in of(findings, "configuration", "warning")] == ["no price is known of set"]
    assert "hush-hush" not in json.dumps(findings)


def test_deployments_are_judged_as_their_workers_would(
    doctor: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shipped_model()
    (tmp_path / "fabric.yaml").write_text(f"""
models:
  - name: assistant
    deployments:
      - {{engine: llamacpp, tier: cpu, name: fits, model: {model}, context_window: 512, slots: 2}}
      - {{engine: llamacpp, tier: cpu, name: long, model: {model}, context_window: 65536}}
      - {{engine: llamacpp, tier: cpu, name: wide, model: {model}, context_window: 1024, slots: 60000}}
      - {{engine: llamacpp, tier: cpu, name: misspelt, model: {model}, options: {{thread: 2}}}}
      - {{engine: vllm, tier: gpu, name: nowhere, model: org/name, options: {{command: [/nowhere/vllm]}}}}
      - {{engine: vllm, tier: gpu, name: here, model: org/name, options: {{command: [{sys.executable}]}}}}
      - {{engine: vllm, tier: gpu, name: handless, model: org/name, options: {{command: [{sys.executable}]}},
         capabilities: [chat, tools]}}
      - {{engine: vllm, tier: gpu, name: told, model: org/name, options: {{args: {{port: 1}}}}}}
      - {{engine: openai, tier: cloud, name: hosted, model: gpt-4o, api_key_env: A_KEY, options: {{proxy: "socks5://x"}}}}
""")
    monkeypatch.setenv("A_KEY", "hush-hush")
    status, findings = doctor()
    assert status == 1
    assert "for 2 slots of 512 tokens" in of(findings, "deployment fits", "ok")[0]["said"]
    assert "longer ones are refused" in of(findings, "deployment long", "warning")[0]["todo"]
    assert "set `slots: " in of(findings, "deployment wide", "error")[0]["todo"]
    assert "no option `thread`" in of(findings, "deployment misspelt", "error")[0]["todo"]
    assert "the extra `gpu`" in of(findings, "deployment nowhere", "warning")[0]["todo"]
    assert sys.executable in of(findings, "deployment here", "ok")[0]["said"]
    assert "`enable-auto-tool-choice`" in of(findings, "deployment handless", "warning")[0]["todo"]
    assert "`port` is written by the fabric" in of(findings, "deployment told", "error")[0]["todo"]
    assert "`options.proxy` is wrong" in of(findings, "deployment hosted", "error")[0]["todo"]


def test_a_secret_that_others_can_read(doctor: Doctor, tmp_path: Path) -> None:
    folder = tmp_path / ".fabric"
    secrets_of(Settings.model_construct(secret=None, data_dir=folder))
    assert of(doctor()[1], "secret", "ok")
    (folder / "secret").chmod(0o644)
    status, findings = doctor()
    assert status == 1
    assert "chmod 600" in of(findings, "secret", "error")[0]["todo"]


def test_an_open_door(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FABRIC_HOST", "0.0.0.0")
    status, findings = doctor()
    assert status == 1
    assert "fabric keys create" in of(findings, "api", "error")[0]["todo"]


def test_a_ledger_of_another_version(doctor: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.sqlite3'}"
    monkeypatch.setenv("FABRIC_DATABASE_URL", url)
    assert "no tables yet" in of(doctor()[1], "ledger", "ok")[0]["said"]
    upgrade(url)
    assert "up to date" in of(doctor()[1], "ledger", "ok")[0]["said"]
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite3")) as database, database:
        database.execute("UPDATE alembic_version SET version_num = 'elsewhere'")
    status, findings = doctor()
    assert status == 1
    assert "fabric migrate" in of(findings, "ledger", "error")[0]["todo"]


def test_presidio_that_cant_work_is_said_before_any_text_comes(tmp_path: Path, doctor: Doctor) -> None:
    file = tmp_path / "fabric.yaml"
    file.write_text(
        CONFIG
        + """
privacy:
  presidio: {models: {en: /nowhere/model}}
  detectors:
    - {entity: person, presidio: PERSON}
"""
    )
    status, findings = doctor("--config", str(file))
    (said,) = [finding for finding in findings if finding["part"] == "privacy"]
    assert (status, said["level"]) == (1, "error")
    assert "isn't installed" in said["said"] or "/nowhere/model" in said["said"]
    assert "inference-fabric[presidio]" in said["todo"] or "nothing is downloaded" in said["todo"]
