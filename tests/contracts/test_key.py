"""What a key looks like, what one permits, and what the fabric's secret makes of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.contracts.catalog import PRIVACY_LABELS
from fabric.contracts.errors import ConfigError
from fabric.contracts.job import JobSpec
from fabric.contracts.key import EVERYTHING, Permissions, new_key, prefix_of, well_formed
from fabric.contracts.secret import Secrets, Tag

labels = st.sampled_from(PRIVACY_LABELS)
texts = st.text("abcdefghij-./", min_size=1, max_size=12)


def test_keys_are_random_and_well_formed() -> None:
    keys = {new_key() for _ in range(500)}
    assert len(keys) == 500
    assert all(well_formed(key) and key.startswith("fab_") and len(key) == 53 for key in keys)
    assert all(len(prefix_of(key)) == 12 for key in keys)


@given(st.integers(4, 52), st.sampled_from("0aZ_-ü"))
def test_a_mistyped_key_is_told_from_an_unknown_one(place: int, character: str) -> None:
    key = new_key()
    if key[place] != character:
        assert not well_formed(key[:place] + character + key[place + 1 :])


@given(st.text())
def test_other_texts_are_no_keys(text: str) -> None:
    assert not well_formed(text)


@given(labels, st.none() | labels)
def test_a_floor_raises_and_never_lowers(asked: str, floor: str | None) -> None:
    got = Permissions(privacy_floor=floor).label(asked)  # type: ignore[arg-type]
    order = PRIVACY_LABELS.index
    assert order(got) == max(order(asked), order(floor) if floor else 0)  # type: ignore[arg-type]


@given(
    st.builds(
        Permissions,
        models=st.none() | st.lists(texts, min_size=1).map(tuple),
        tiers=st.none() | st.lists(st.sampled_from(["cpu", "gpu", "cloud"]), min_size=1).map(tuple),
        regions=st.none() | st.lists(texts, min_size=1).map(tuple),
        privacy_floor=st.none() | labels,
    )
)
def test_permissions_come_back_as_they_were(permissions: Permissions) -> None:
    assert Permissions.load(permissions.dump()) == permissions
    assert (permissions.dump() is None) == (permissions == EVERYTHING)


def test_what_isnt_held_back_takes_no_room_in_a_job() -> None:
    spec = JobSpec(id="job_1", endpoint="/v1/embeddings", model="small")
    assert b"allowed" not in spec.dump()
    narrow = JobSpec("job_1", "/v1/embeddings", "small", allowed_tiers=("cpu",), allowed_regions=("eu", "local"))
    assert JobSpec.load(narrow.dump()) == narrow


class TestSecrets:
    def test_tags_are_of_one_purpose_and_one_secret(self) -> None:
        one, other = Secrets(["a" * 32]), Secrets(["b" * 32])
        tag = one.tag("seal", b"row")
        assert one.vouches("seal", b"row", tag)
        assert not one.vouches("audit", b"row", tag)
        assert not one.vouches("seal", b"another row", tag)
        assert not one.vouches("seal", b"row", Tag(tag.secret_id, bytes(32)))
        assert not other.vouches("seal", b"row", tag)
        assert not other.vouches("seal", b"row", Tag(other.id, tag.value))

    def test_an_older_secret_still_counts_but_makes_nothing_new(self) -> None:
        old, both = Secrets(["a" * 32]), Secrets.parse(f"{'b' * 32}, {'a' * 32}")
        assert both.vouches("seal", b"row", old.tag("seal", b"row"))
        assert both.tag("seal", b"row").secret_id == both.id != old.id
        assert old.digest(b"key") in both.digests(b"key") and both.digest(b"key") == both.digests(b"key")[0]
        assert old.id in both and both.id not in old

    @pytest.mark.parametrize("text", ["", ",", "short", "a" * 31, ",".join(["a" * 32] * 5), f"{'a' * 32},short"])
    def test_a_weak_secret_is_refused_and_not_repeated(self, text: str) -> None:
        with pytest.raises(ConfigError) as refused:
            Secrets.parse(text)
        assert "short" not in str(refused.value) and "aaaa" not in str(refused.value)

    def test_it_doesnt_show_itself(self) -> None:
        assert "a" * 8 not in repr(Secrets(["a" * 32]))
