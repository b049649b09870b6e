"""What ``fabric status`` says of engines whose workers differ."""

from __future__ import annotations

import pytest

from fabric.cli.status import _states


@pytest.mark.parametrize(
    ("states", "said"),
    [({}, None), ({"loaded": 3}, "loaded"), ({"loaded": 2, "away": 1}, "1 away, 2 loaded")],
)
def test_states(states: dict[str, int], said: str | None) -> None:
    assert _states({"states": states}) == said
