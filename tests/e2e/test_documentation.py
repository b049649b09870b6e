"""Every command and every Python snippet of the documentation runs, against a fabric as it comes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.e2e.conftest import Fabric

ROOT = Path(__file__).parents[2]
#: Commands are in ``sh`` blocks. Blocks without a language are shown, not run.
BLOCK = re.compile(r"^( *)```(sh|python)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Snippet:
    page: str
    line: int
    language: str
    code: str


def snippets() -> Iterator[Snippet]:
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = path.read_text("utf-8")
        for found in BLOCK.finditer(text):
            indent = found[1]
            code = "\n".join(line.removeprefix(indent) for line in found[3].splitlines())
            yield Snippet(path.name, text.count("\n", 0, found.start()) + 1, found[2], code)


@pytest.mark.parametrize("snippet", list(snippets()), ids=lambda s: f"{s.page}:{s.line}")
def test_a_snippet_runs(snippet: Snippet, real: Fabric) -> None:
    shutil.copy(ROOT / "examples" / "batch.jsonl", real.folder / "batch.jsonl")
    code = snippet.code.replace("http://127.0.0.1:8080", real.url)
    shell = ["bash", "-euo", "pipefail", "-c"]
    command = [*shell, code] if snippet.language == "sh" else [sys.executable, "-c", code]
    environ = {**real.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=real.folder, env=environ, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, f"{snippet.code}\n{done.stdout}\n{done.stderr}"


def test_every_link_leads_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
