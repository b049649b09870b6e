"""One line of an input file: what is good, and what is told of what isn't."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from fabric.batches.request_line import CUSTOM_ID_CHARS, BadLine, read_line
from fabric.contracts.catalog import Catalog, Deployment, Model

CHAT = "/v1/chat/completions"
CATALOG = Catalog(models=(Model(name="small", deployments=(Deployment(name="s", engine="mock", tier="cpu"),)),))
GOOD: dict[str, Any] = {
    "custom_id": "a",
    "method": "POST",
    "url": CHAT,
    "body": {"model": "small", "messages": [{"role": "user", "content": "a secret"}]},
}


def bad(raw: bytes | dict[str, Any]) -> BadLine:
    with pytest.raises(BadLine) as caught:
        read_line(raw if isinstance(raw, bytes) else orjson.dumps(raw), CHAT, CATALOG)
    assert "a secret" not in caught.value.error.message
    return caught.value


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in GOOD.items() if key != name}


def test_a_good_line() -> None:
    custom_id, request = read_line(orjson.dumps(GOOD) + b"\r\n", CHAT, CATALOG)
    assert (custom_id, request.model, request.stream) == ("a", "small", False)


@pytest.mark.parametrize("raw", [b"{", b"", b"\xff\xfe{}", b"nonsense", b"{}{}", b'{"custom_id": "\\ud800"}'])
def test_not_json(raw: bytes) -> None:
    assert (bad(raw).error.code, bad(raw).custom_id) == ("invalid_json_line", None)


@pytest.mark.parametrize("raw", [b"[]", b"null", b'"text"', b"7", b"true"])
def test_not_an_object(raw: bytes) -> None:
    assert bad(raw).error.code == "invalid_json_line"


@pytest.mark.parametrize("value", [7, "", True, [], "x" * (CUSTOM_ID_CHARS + 1), "zero\0"])
def test_a_custom_id_that_is_none(value: Any) -> None:
    refused = bad(GOOD | {"custom_id": value})
    assert (refused.error.param, refused.custom_id, refused.answered) == ("custom_id", None, False)


def test_a_custom_id_may_be_long_and_of_any_script() -> None:
    custom_id = "ж" * CUSTOM_ID_CHARS
    assert read_line(orjson.dumps(GOOD | {"custom_id": custom_id}), CHAT, CATALOG)[0] == custom_id


@pytest.mark.parametrize("name", ["custom_id", "method", "url", "body"])
@pytest.mark.parametrize("as_null", [True, False])
def test_what_is_missing_is_named(name: str, as_null: bool) -> None:
    refused = bad(GOOD | {name: None} if as_null else without(name))
    assert (refused.error.code, refused.error.param) == ("missing_required_parameter", name)
    assert not refused.answered


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"method": "GET"}, "invalid_value", "method"),
        ({"method": "post"}, "invalid_value", "method"),
        ({"url": "/v1/completions"}, "url_mismatch", "url"),
        ({"url": 7}, "url_mismatch", "url"),
        ({"body": "text"}, "invalid_value", "body"),
        ({"body": []}, "invalid_value", "body"),
        ({"priority": 1}, "unknown_parameter", "priority"),
    ],
)
def test_what_is_no_request(change: dict[str, Any], code: str, param: str) -> None:
    refused = bad(GOOD | change)
    assert (refused.error.code, refused.error.param, refused.custom_id) == (code, param, "a")
    assert not refused.answered


@pytest.mark.parametrize(
    ("change", "status", "code", "param"),
    [
        ({"model": "nobody"}, 404, "model_not_found", "model"),
        ({"temperature": 7}, 400, "invalid_value", "temperature"),
        ({"no_such": 1}, 400, "unknown_parameter", "no_such"),
        ({"messages": []}, 400, "invalid_value", "messages"),
        ({"stream": True}, 400, "unsupported_parameter", "stream"),
        ({"fabric": {"privacy": "secret"}}, 400, "invalid_value", "fabric.privacy"),
    ],
)
def test_a_request_that_is_refused_has_its_answer(change: dict[str, Any], status: int, code: str, param: str) -> None:
    refused = bad(GOOD | {"body": GOOD["body"] | change})
    assert (refused.error.status, refused.error.code, refused.error.param) == (status, code, param)
    assert (refused.custom_id, refused.answered) == ("a", True)


def test_a_line_that_trips_a_bug_is_only_bad(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def trip(*_: Any) -> None:
        raise RecursionError("a secret")

    monkeypatch.setattr("fabric.batches.request_line.parse_request", trip)
    assert bad(GOOD).error.status == 500
    assert "a secret" not in caplog.text
