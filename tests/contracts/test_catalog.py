"""Privacy rules: what two of them permit together."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fabric.contracts.catalog import DATA_POLICIES, TIERS, PrivacyRule

regions = st.sets(st.sampled_from(("local", "eu", "us"))).map(sorted).map(tuple)
privacy_rules = st.builds(
    PrivacyRule,
    tiers=st.sets(st.sampled_from(TIERS)).map(sorted).map(tuple),
    regions=st.none() | regions,
    data_policy=st.sampled_from(DATA_POLICIES),
    redact=st.booleans(),
)


def permits(rule: PrivacyRule, tier: str, region: str, data_policy: str, *, redacted: bool) -> bool:
    return (
        tier in rule.tiers
        and (rule.regions is None or region in rule.regions)
        and DATA_POLICIES.index(data_policy) >= DATA_POLICIES.index(rule.data_policy)  # type: ignore[arg-type]
        and (redacted or not rule.redact)
    )


@given(
    privacy_rules,
    privacy_rules,
    st.sampled_from(TIERS),
    st.sampled_from(("local", "eu", "us", "ap")),
    st.sampled_from(DATA_POLICIES),
    st.booleans(),
)
def test_narrowed_by_another_a_rule_permits_what_both_do(
    one: PrivacyRule, other: PrivacyRule, tier: str, region: str, data_policy: str, redacted: bool
) -> None:
    asked = (tier, region, data_policy)
    both = permits(one, *asked, redacted=redacted) and permits(other, *asked, redacted=redacted)
    assert permits(one.narrowed(other), *asked, redacted=redacted) == both
    assert permits(other.narrowed(one), *asked, redacted=redacted) == both
