"""What is installed: locked, hashed, and listed."""

from __future__ import annotations

import json
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_locked_package_has_a_hash_and_comes_from_the_public_index() -> None:
    packages = tomllib.loads((ROOT / "uv.lock").read_text())["package"]
    assert len(packages) > 100
    for package in packages:
        if "editable" in package["source"]:
            continue
        assert package["source"] == {"registry": "https://pypi.org/simple"}, package["name"]
        files = [*package.get("wheels", ()), *([package["sdist"]] if "sdist" in package else ())]
        assert files, package["name"]
        for file in files:
            assert file["hash"].startswith("sha256:"), package["name"]
            assert file["url"].startswith("https://files.pythonhosted.org/"), package["name"]


def test_the_bill_of_materials_lists_what_is_installed() -> None:
    said = subprocess.run([ROOT / "scripts" / "sbom"], capture_output=True, text=True, check=True, timeout=120)
    bill = json.loads(said.stdout)
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.5")
    listed = {component["name"]: component for component in bill["components"]}
    assert {"celery", "redis", "kombu", "pydantic", "httpx", "flower", "prometheus-client"} <= listed.keys()
    assert not {"pytest", "ruff", "vllm"} & listed.keys()
    for name, component in listed.items():
        assert component["purl"].startswith(f"pkg:pypi/{name}@{component['version']}")
