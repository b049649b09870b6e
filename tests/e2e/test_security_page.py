"""Each line of the threat model names a test that is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text("utf-8")


def test_every_line_names_a_test_that_exists() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("|") and not re.match(r"\|(---|\s*what )", line)]
    assert len(rows) > 20
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(?:\w+::)?(\w+)`", row)
        assert named, row
        for path, name in named:
            assert re.search(rf"def {name}\(", (ROOT / path).read_text("utf-8")), f"{path} has no {name}"


def test_every_kind_of_attacker_has_something_left() -> None:
    """Whoever changes what is installed aside: there the database of vulnerabilities says it."""
    parts = {part.partition("\n")[0]: part for part in PAGE.split("\n## ")[1:]}
    assert len(parts) > 8
    assert [name for name, part in parts.items() if "\nLeft: " not in part] == [
        "Somebody who changes what is installed"
    ]
