"""How much memory there is: what containers leave of it."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from fabric.fit.memory import available_memory, gpu_memory, left_in_cgroups


def group(folder: Path, **values: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in values.items():
        (folder / name.replace("_", ".", 1)).write_text(value + "\n")
    return folder


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return tmp_path / "self-cgroup"


def test_every_group_above_us_counts(tmp_path: Path, own: Path) -> None:
    own.write_text("0::/outer/inner\n")
    root = group(tmp_path / "cg")
    group(root / "outer", memory_max="1000", memory_current="900", memory_stat="anon 800\ninactive_file 50")
    group(root / "outer" / "inner", memory_max="max", memory_current="1")
    assert list(left_in_cgroups(root, own)) == [1000 - 900 + 50]
    group(root / "outer" / "inner", memory_max="120", memory_current="100")
    assert sorted(left_in_cgroups(root, own)) == [20, 150]


def test_a_path_of_the_host_in_a_container(tmp_path: Path, own: Path) -> None:
    own.write_text("0::/system.slice/docker-1234.scope\n")
    root = group(tmp_path / "cg", memory_max="2000", memory_current="500")
    assert list(left_in_cgroups(root, own)) == [1500]


def test_version_1(tmp_path: Path, own: Path) -> None:
    own.write_text("12:cpu,cpuacct:/a\n7:memory:/a\n0::/\n")
    folder = group(tmp_path / "cg" / "memory" / "a")
    (folder / "memory.limit_in_bytes").write_text("4096\n")
    (folder / "memory.usage_in_bytes").write_text("4000\n")
    (folder / "memory.stat").write_text("total_inactive_file 4\n")
    assert list(left_in_cgroups(tmp_path / "cg", own)) == [100]


@pytest.mark.parametrize("content", ["", "nonsense", "0::", "a:b", "::\n\n:"])
def test_where_nothing_is_limited(tmp_path: Path, own: Path, content: str) -> None:
    own.write_text(content)
    assert list(left_in_cgroups(tmp_path / "none", own)) == []


def test_this_machine() -> None:
    assert 0 < available_memory() <= psutil.virtual_memory().total
    found = gpu_memory()
    assert found is None or found > 2**28
