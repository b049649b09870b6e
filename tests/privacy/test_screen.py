"""Labels go up by what is found, and never down; what can't be searched counts as found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.contracts.catalog import PRIVACY_LABELS, Catalog
from fabric.contracts.payload import Payload, load_placeholders
from fabric.contracts.rule import Rule
from fabric.privacy import Screen, Screened, screen_of
from fabric.routing import decide, label_blocks, policy_hash

CARD = "4111 1111 1111 1111"
RAISING = [
    {"entity": "card", "raise_to": "restricted"},
    {"entity": "email", "raise_to": "confidential"},
    {"entity": "badge", "pattern": "B-[0-9]{4}", "raise_to": "confidential"},
]
Screens = Callable[..., Screened]
Catalogs = Callable[..., Catalog]


def chat(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


def test_without_detectors_nothing_is_raised_or_searched(catalog: Catalogs, screened: Screens) -> None:
    found = screened(catalog(), chat(CARD))
    assert (found.spec.privacy, found.spec.entities, found.placeholders) == ("internal", (), b"")
    assert not Screen(catalog()).looks("internal")


@pytest.mark.parametrize(
    ("text", "label", "entities"),
    [
        ("hello", "internal", ()),
        (f"pay with {CARD}", "restricted", ("card",)),
        ("ada@example.com", "confidential", ("email",)),
        (f"{CARD} of ada@example.com", "restricted", ("card", "email")),
        ("badge B-1234", "confidential", ("badge",)),
        ("192.0.2.1", "internal", ("ip_address",)),
    ],
)
def test_a_find_raises_the_label(
    text: str, label: str, entities: tuple[str, ...], catalog: Catalogs, screened: Screens
) -> None:
    spec = screened(catalog(detectors=RAISING), chat(text)).spec
    assert (spec.privacy, spec.entities) == (label, entities)
    assert spec.raised_from == (None if label == "internal" else "internal")


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "system", "content": CARD}, {"role": "user", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": CARD}]}]},
        {"messages": [{"role": "user", "content": "x", "name": "4111111111111111"}]},
        {
            "messages": [
                {"role": "user", "content": "x"},
                {
                    "role": "assistant",
                    "tool_calls": [
                        {"id": "c", "type": "function", "function": {"name": "f", "arguments": f'{{"n": "{CARD}"}}'}}
                    ],
                },
                {"role": "tool", "tool_call_id": "c", "content": "ok"},
            ]
        },
        {
            "messages": [
                {"role": "user", "content": "x"},
                {
                    "role": "assistant",
                    "tool_calls": [
                        {
                            "id": "c",
                            "type": "function",
                            "function": {"name": "f", "arguments": '{"n":"4111\\u00201111\\u00201111\\u00201111"}'},
                        }
                    ],
                },
            ]
        },
        {"messages": [{"role": "assistant", "content": "x", "reasoning_content": CARD}]},
        {"messages": [{"role": "user", "content": "x"}, {"role": "tool", "tool_call_id": "c", "content": CARD}]},
        chat("x")
        | {"tools": [{"type": "function", "function": {"name": "f", "description": f"for {CARD}", "parameters": {}}}]},
        chat("x")
        | {
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"properties": {CARD: {}}}}}],
        },
        chat("x")
        | {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"enum": [CARD]}}}},
        chat("x") | {"stop": [CARD]},
        chat("x") | {"user": CARD},
        {"prompt": CARD},
        {"prompt": ["x", CARD]},
        {"input": CARD},
        {"input": ["x", CARD]},
        chat("４１１１ １１１１ １１１１ １１１１"),
        chat("4111\u200b 1111\u00a01111 11\u200d11"),
        chat('{"card": "4111\\u00201111\\u00201111\\u00201111"}'),
    ],
)
def test_every_text_that_a_model_may_see_is_searched(
    body: dict[str, Any], catalog: Catalogs, screened: Screens
) -> None:
    assert screened(catalog(detectors=RAISING), body).spec.privacy == "restricted"


@pytest.mark.parametrize("body", [{"prompt": [1, 2]}, {"prompt": [[1], [2]]}, {"input": [5]}, {"input": [[5]]}])
def test_token_ids_count_as_everything_found(body: dict[str, Any], catalog: Catalogs, screened: Screens) -> None:
    """Nobody but the model's vocabulary can read them."""
    spec = screened(catalog(detectors=RAISING), body).spec
    assert spec.privacy == "restricted"
    assert {"card", "email", "badge"} <= set(spec.entities)
    spec = screened(catalog(), body, privacy="confidential").spec
    assert not spec.redacted


def test_an_image_is_an_entity_of_its_own(catalog: Catalogs, screened: Screens) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUtJQUlPU0ZPRE5ON0VYQU1QTEU="}}
    body = {"messages": [{"role": "user", "content": [{"type": "text", "text": "what is it"}, image]}]}
    rules = catalog(detectors=[{"entity": "image", "raise_to": "restricted"}])
    assert screened(rules, body).spec.privacy == "restricted"
    spec = screened(catalog(), body, privacy="confidential").spec
    assert spec.entities == ("image",)
    assert not spec.redacted  # nobody can take out of it what it shows


def test_a_detector_that_errors_counts_as_fired(
    catalog: Catalogs, screened: Screens, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(body: dict[str, Any]) -> str:
        raise RuntimeError

    monkeypatch.setattr("fabric.privacy.screen.joined", breaks)
    assert screened(catalog(detectors=RAISING), chat("hello")).spec.privacy == "restricted"
    spec = screened(catalog(), chat("hello"), privacy="confidential").spec
    assert not spec.redacted
    decision = decide(spec, catalog(), policy_hash(catalog()))
    assert [out.deployment for out in decision.eliminated] == ["away"]


def test_a_scanner_that_cant_be_made_counts_as_fired(
    catalog: Catalogs, screened: Screens, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(detectors: object) -> None:
        raise ImportError

    monkeypatch.setattr("fabric.privacy.screen.Scanner", missing)
    spec = screened(catalog(detectors=RAISING), chat("hello")).spec
    assert spec.privacy == "restricted"
    spec = screened(catalog(), chat("hello"), privacy="confidential").spec
    assert not spec.redacted


def test_rules_that_read_entities_have_texts_searched(catalog: Catalogs, screened: Screens) -> None:
    rules = catalog().model_copy(update={"rules": (Rule(when="'card' in entities", deny="no cards"),)})
    assert screened(rules, chat(CARD)).spec.entities == ("card",)


@given(
    asked=st.sampled_from(PRIVACY_LABELS),
    raises=st.lists(st.tuples(st.sampled_from(["card", "email", "phone", "secret"]), st.sampled_from(PRIVACY_LABELS))),
    text=st.sampled_from(["", CARD, "ada@example.com", f"{CARD} +49 171 1234567", "AKIAIOSFODNN7EXAMPLE"]),
)
def test_labels_never_go_down(
    asked: str, raises: list[tuple[str, str]], text: str, catalog: Catalogs, screened: Screens
) -> None:
    rules = catalog(detectors=[{"entity": entity, "raise_to": label} for entity, label in raises])
    spec = screened(rules, chat(text), privacy=asked).spec
    rank = PRIVACY_LABELS.index
    assert rank(spec.privacy) >= rank(asked)  # type: ignore[arg-type]
    for entity, label in raises:
        if entity in spec.entities:
            assert rank(spec.privacy) >= rank(label)  # type: ignore[arg-type]


def test_redaction_gives_the_cloud_its_own_part(catalog: Catalogs, screened: Screens) -> None:
    found = screened(catalog(), chat(f"{CARD} and ada@example.com"), privacy="confidential")
    assert found.spec.redacted
    payload = Payload.load(found.payload)
    at_home, away = (orjson.loads(payload.of(tier))["body"]["messages"][0]["content"] for tier in ("cpu", "cloud"))
    assert at_home == f"{CARD} and ada@example.com"
    assert away == "<CARD_1> and <EMAIL_1>"
    assert load_placeholders(found.placeholders) == {"<CARD_1>": CARD, "<EMAIL_1>": "ada@example.com"}


def test_with_nothing_found_the_payload_is_one_part(catalog: Catalogs, screened: Screens) -> None:
    found = screened(catalog(), chat("hello"), privacy="confidential")
    assert found.spec.redacted
    assert Payload.load(found.payload).redacted is None
    assert found.placeholders == b""


def test_an_entity_may_be_left_where_it_is(catalog: Catalogs, screened: Screens) -> None:
    rules = catalog(detectors=[{"entity": "ip_address", "redact": False}])
    found = screened(rules, chat("192.0.2.1 of ada@example.com"), privacy="confidential")
    assert b"192.0.2.1 of <EMAIL_1>" in Payload.load(found.payload).of("cloud")


def test_what_cant_be_replaced_stays_at_home(catalog: Catalogs, screened: Screens) -> None:
    rules = catalog()
    for body in (
        {"messages": [{"role": "user", "content": "x", "name": "AKIAIOSFODNN7EXAMPLE"}]},
        chat("x") | {"tools": [{"type": "function", "function": {"name": "f", "parameters": {CARD: {}}}}]},
        chat("４１１１ １１１１ １１１１ １１１１"),
    ):
        found = screened(rules, body, privacy="confidential")
        assert not found.spec.redacted
        assert Payload.load(found.payload).redacted is None
        decision = decide(found.spec, rules, policy_hash(rules))
        (out,) = decision.eliminated
        assert (out.deployment, out.reason) == ("away", "privacy")
        assert "couldn't be redacted" in out.detail


def test_the_decision_says_what_raised_the_label(catalog: Catalogs, screened: Screens) -> None:
    rules = catalog(detectors=RAISING)
    spec = screened(rules, chat(CARD)).spec
    (out,) = decide(spec, rules, policy_hash(rules)).eliminated
    assert out.detail == "label restricted (raised from internal: card found) permits cpu, gpu, not cloud"
    assert CARD not in repr(spec)


def test_blocks_are_told(catalog: Catalogs, screened: Screens) -> None:
    rules = catalog()
    deployments = rules.by_model["m"].deployments
    for label, blocked in (("public", False), ("internal", False), ("confidential", False), ("restricted", True)):
        spec = screened(rules, chat("x"), privacy=label).spec
        assert label_blocks(spec, deployments, rules.privacy.of(spec.privacy)) is blocked


def test_a_screen_is_made_once(catalog: Catalogs) -> None:
    one, other = catalog(), catalog()
    assert screen_of(one) is screen_of(one)
    assert screen_of(one) is not screen_of(other)
