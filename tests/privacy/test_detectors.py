"""What `privacy.detectors` may say: each complaint names what would be right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from fabric.contracts.detector import Detector
from fabric.contracts.errors import ConfigError
from fabric.settings import load


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"entity": "badge"}, "needs a `pattern`"),
        ({"entity": "card", "pattern": "x", "raise_to": "restricted"}, "is built in"),
        ({"entity": "card"}, "say what for"),
        ({"entity": "image", "redact": False}, "can't be redacted"),
        ({"entity": "badge", "pattern": r"(?=x)"}, "RE2"),
        ({"entity": "badge", "pattern": r"(a)\1"}, "RE2"),
        ({"entity": "badge", "pattern": "("}, "RE2"),
        ({"entity": "badge", "pattern": "a*"}, "the empty text"),
        ({"entity": "badge", "pattern": "((a{1000}){1000}){10}"}, "RE2"),
    ],
)
def test_what_it_may_not_say(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Detector.model_validate(values)


def test_the_file_is_told_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "fabric.yaml"
    file.write_text("privacy:\n  detectors:\n    - {entity: badge, pattern: '(?=x)'}\n")
    with pytest.raises(ConfigError, match=r"fabric\.yaml:3: .*RE2"):
        load(file, {})
