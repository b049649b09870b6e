"""A disk that is nearly full: new work is refused, the rest goes on."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import pytest

from fabric.store.disk import Disk
from tests.gateway.conftest import eventually

if TYPE_CHECKING:
    from fabric.gateway import GatewaySettings
    from tests.conftest import SmallDisk
    from tests.gateway.conftest import Served

JOB: dict[str, Any] = {
    "endpoint": "/v1/chat/completions",
    "body": {"model": "small", "messages": [{"role": "user", "content": "hi"}]},
}


@dataclass(frozen=True, slots=True)
class Told(Disk):
    low: Event = field(default_factory=Event)

    def is_low(self) -> bool:
        return self.low.is_set()


def test_new_work_is_refused_until_there_is_room(settings: GatewaySettings, serve: Callable[..., Served]) -> None:
    disk = Told(Path("/"), 256 * 2**20)
    gateway = serve(replace(settings, disk=disk))
    with gateway.http() as http:
        accepted = http.post("/v1/jobs", json=JOB)
        assert accepted.status_code == 202
        disk.low.set()
        refused = eventually(lambda: (answer := http.post("/v1/jobs", json=JOB)).status_code == 503 and answer)
        assert refused.headers["retry-after"] == "10"
        assert refused.json()["error"]["code"] == "unavailable"
        assert "less than 256 MiB are free" in refused.json()["error"]["message"]
        assert http.post(JOB["endpoint"], json=JOB["body"]).status_code == 503
        file = {"file": ("in.jsonl", b"{}\n")}
        assert http.post("/v1/files", files=file, data={"purpose": "batch"}).status_code == 503
        job = accepted.json()["id"]
        assert http.get(f"/v1/jobs/{job}").status_code == 200
        assert http.post(f"/v1/jobs/{job}/cancel").status_code == 200
        disk.low.clear()
        assert eventually(lambda: http.post("/v1/jobs", json=JOB).status_code == 202)


def test_how_much_is_free(tmp_path: Path) -> None:
    found = os.statvfs(tmp_path)
    assert Disk(tmp_path, 2 * found.f_blocks * found.f_frsize).is_low()
    assert not Disk(tmp_path, 0).is_low()
    assert not Disk(tmp_path / "gone", 2**60).is_low()


def test_a_disk_that_is_filled_up(small_disk: SmallDisk) -> None:
    disk = Disk(small_disk.folder, 1_000_000)
    assert not disk.is_low()
    small_disk.fill()
    assert disk.is_low()
    with pytest.raises(type(disk.refusal()), match="less than 1 MiB are free"):
        raise disk.refusal()
    small_disk.free()
    assert not disk.is_low()
