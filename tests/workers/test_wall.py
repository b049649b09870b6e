"""The worker's own look at labels: what mustn't come here is refused before the engine has it."""

from __future__ import annotations

from typing import Any

import pytest

from fabric.contracts.catalog import Catalog, Deployment, PrivacyRules
from fabric.contracts.errors import LabelForbids
from fabric.contracts.job import JobSpec
from workers.wall import Wall

AWAY = Deployment(name="away", engine="openai", tier="cloud", data_policy="zero_retention", region="eu")
HOME = Deployment(name="home", engine="mock", tier="cpu")


def spec(**fields: Any) -> JobSpec:
    return JobSpec(id="job_1", endpoint="/v1/chat/completions", model="m", **fields)


@pytest.mark.parametrize(
    "fields",
    [{"privacy": "restricted"}, {"privacy": "confidential"}, {"allowed_tiers": ("cpu",)}, {"allowed_regions": ("us",)}],
)
def test_it_refuses_what_mustnt_leave(fields: dict[str, Any]) -> None:
    wall = Wall(PrivacyRules())
    wall.check(spec(**fields), HOME)
    with pytest.raises(LabelForbids) as refused:
        wall.check(spec(**fields), AWAY)
    assert refused.value.info.fall_back
    assert not refused.value.info.retry


def test_what_may_leave_passes() -> None:
    wall = Wall(PrivacyRules())
    for fields in ({}, {"privacy": "public"}, {"privacy": "confidential", "redacted": True}):
        wall.check(spec(**fields), AWAY)


def test_rules_that_are_new_count_from_the_next_look() -> None:
    stricter = Catalog.model_validate({"privacy": {"internal": {"tiers": ["cpu"]}}})
    coming = [None, stricter]
    wall = Wall(PrivacyRules(), lambda: coming.pop(0))
    wall.look()
    wall.check(spec(), AWAY)
    wall.look()
    with pytest.raises(LabelForbids):
        wall.check(spec(), AWAY)
