"""There and back: what is taken out of a body comes back as it was, however an answer is cut."""

from __future__ import annotations

import string
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.contracts.payload import Payload, dump_placeholders, load_placeholders
from fabric.privacy import Placeholders, Scanner, StreamRestorer
from fabric.privacy.redaction import NotRedactable, redact

SCANNER = Scanner()
SECRETS = [
    "ada@example.com",
    "bob@example.com",
    "4111 1111 1111 1111",
    "+49 171 1234567",
    "DE89 3704 0044 0532 0130 00",
    "192.0.2.17",
    "AKIAIOSFODNN7EXAMPLE",
    "536-22-1234",
    '-----BEGIN PRIVATE KEY-----\nMII"\\E\n-----END PRIVATE KEY-----',
]
LOOKALIKES = ["<EMAIL_1>", "<EMAIL_2>", "<CARD_1>", "<", ">", "<EMAIL_", "_1>", "\\u003cEMAIL_1\\u003e", "<<EMAIL_1>>"]
WORDS = st.text(alphabet=string.ascii_letters + " äß\n\"\\'{}[]:,.<>_1", max_size=12)
#: Words, secrets and what looks like placeholders, with something between them that ends a find.
TEXTS = st.lists(st.one_of(st.sampled_from(SECRETS), st.sampled_from(LOOKALIKES), WORDS), max_size=6).map(" | ".join)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), TEXTS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(string.ascii_lowercase, max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)
BODIES = st.fixed_dictionaries(
    {
        "messages": st.lists(
            st.fixed_dictionaries({"role": st.just("user"), "content": TEXTS}), min_size=1, max_size=3
        ),
        "stop": TEXTS,
        "tools": st.lists(
            st.fixed_dictionaries(
                {
                    "type": st.just("function"),
                    "function": st.fixed_dictionaries({"parameters": JSON, "description": TEXTS}),
                }
            ),
            max_size=1,
        ),
    }
)


def chat(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


def put_back(value: Any, placeholders: Placeholders) -> Any:
    """All texts of a JSON value."""
    if isinstance(value, str):
        return placeholders.text.put_back(value)
    if isinstance(value, dict):
        return {name: put_back(inner, placeholders) for name, inner in value.items()}
    return [put_back(inner, placeholders) for inner in value] if isinstance(value, list) else value


@given(BODIES)
def test_what_is_redacted_is_restored_and_nothing_is_left(body: dict[str, Any]) -> None:
    before = orjson.dumps(body)
    clean, hidden = redact(body, SCANNER)
    assert orjson.dumps(body) == before  # the original stays as it is
    assert put_back(clean, Placeholders(hidden)) == body
    left = orjson.dumps(clean).decode()
    for secret in SECRETS[:-1]:
        assert secret not in left
    assert len(set(hidden.values())) == len(hidden)


@given(TEXTS, st.data())
def test_a_stream_is_restored_however_it_is_cut(text: str, data: st.DataObject) -> None:
    clean, hidden = redact(chat(text), SCANNER)
    answer = clean["messages"][0]["content"]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(answer)), max_size=12)))
    pieces = [answer[a:b] for a, b in zip([0, *cuts], [*cuts, len(answer)], strict=True)]
    said, _ = streamed([{"content": piece} for piece in pieces], hidden)
    assert said == text


@given(JSON, st.data())
def test_arguments_of_functions_are_restored_as_json(values: Any, data: st.DataObject) -> None:
    arguments = orjson.dumps({"values": values}).decode()
    body = chat("x")
    body["messages"] += [
        {"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": {"arguments": arguments}}]}
    ]
    clean, hidden = redact(body, SCANNER)
    said = clean["messages"][1]["tool_calls"][0]["function"]["arguments"]
    if data.draw(st.booleans()):  # as some makers write it
        said = said.replace("<", "\\u003c").replace(">", "\\u003e")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(said)), max_size=6)))
    pieces = [said[a:b] for a, b in zip([0, *cuts], [*cuts, len(said)], strict=True)]
    calls = [{"tool_calls": [{"index": 0, "function": {"arguments": piece}}]} for piece in pieces]
    _, got = streamed(calls, hidden)
    assert orjson.loads(got) == {"values": values}
    whole = {"choices": [{"message": {"content": None, "tool_calls": [{"function": {"arguments": said}}]}}]}
    restored = orjson.loads(Placeholders(hidden).restored(orjson.dumps(whole)))
    got = restored["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"]
    assert orjson.loads(got) == {"values": values}


@pytest.mark.parametrize("cut", range(1, 14))
def test_an_escape_that_is_cut_anywhere_is_put_together(cut: int) -> None:
    hidden = {"<EMAIL_1>": "ada@example.com"}
    said = '["\\u003cEMAIL_1\\u003e"]'
    calls = [{"tool_calls": [{"index": 0, "function": {"arguments": piece}}]} for piece in (said[:cut], said[cut:])]
    assert orjson.loads(streamed(calls, hidden)[1]) == ["ada@example.com"]


def streamed(deltas: list[dict[str, Any]], hidden: dict[str, str], *, finish: bool = True) -> tuple[str, str]:
    """All that a reader gets: content and arguments."""
    restorer = StreamRestorer(Placeholders(hidden))
    chunks = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    if finish:
        chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    told = [restorer.event(b'{"type":"token","chunk":' + orjson.dumps(chunk) + b"}") for chunk in chunks]
    if rest := restorer.rest():
        told.append(b'{"type":"token","chunk":' + rest + b"}")
    content = arguments = ""
    for event in told:
        for choice in orjson.loads(event)["chunk"]["choices"]:
            content += choice["delta"].get("content") or ""
            for call in choice["delta"].get("tool_calls") or ():
                arguments += call["function"].get("arguments") or ""
    return content, arguments


HIDDEN = {"<EMAIL_1>": "ada@example.com", "<EMAIL_12>": "bob@example.com"}


@pytest.mark.parametrize(
    "text", ["<EMAIL_1>", "a<EMAIL_1>b<EMAIL_12>c", "<<EMAIL_1>>", "<EMAIL_1", "<EMAIL_3>", "<EM<"]
)
@pytest.mark.parametrize("finish", [True, False])
def test_every_single_cut(text: str, finish: bool) -> None:
    expected = text.replace("<EMAIL_1>", "ada@example.com").replace("<EMAIL_12>", "bob@example.com")
    for cut in range(len(text) + 1):
        said, _ = streamed([{"content": text[:cut]}, {"content": text[cut:]}], HIDDEN, finish=finish)
        assert said == expected
    said, _ = streamed([{"content": letter} for letter in text], HIDDEN, finish=finish)
    assert said == expected


def test_choices_and_fields_dont_mix() -> None:
    restorer = StreamRestorer(Placeholders(HIDDEN))
    chunks = [
        {"choices": [{"index": 0, "delta": {"content": "<EMA"}}, {"index": 1, "delta": {"content": "IL_1>"}}]},
        {"choices": [{"index": 0, "delta": {"reasoning_content": "IL_1>"}}]},
        {"choices": [{"index": 0, "delta": {"content": "IL_1>"}}]},
    ]
    told = [orjson.loads(restorer.chunk(orjson.dumps(chunk)))["choices"] for chunk in chunks]
    assert [choice["delta"]["content"] for choice in told[0]] == ["", "IL_1>"]
    assert told[1][0]["delta"] == {"reasoning_content": "IL_1>"}
    assert told[2][0]["delta"] == {"content": "ada@example.com"}


def test_a_completion_and_its_stream() -> None:
    placeholders = Placeholders(HIDDEN)
    whole = orjson.dumps({"choices": [{"index": 0, "text": "to <EMAIL_12>"}]})
    assert orjson.loads(placeholders.restored(whole))["choices"][0]["text"] == "to bob@example.com"
    restorer = StreamRestorer(placeholders)
    told = [
        orjson.loads(restorer.chunk(orjson.dumps({"choices": [{"index": 0, "text": piece}]})))
        for piece in ("to <", "EMAIL_12", "> <")
    ]
    assert [one["choices"][0]["text"] for one in told] == ["to ", "", "bob@example.com "]
    assert orjson.loads(restorer.rest() or b"")["choices"][0]["text"] == "<"


def test_log_probabilities_stay_as_they_came() -> None:
    logprobs = {"content": [{"token": "<EMAIL_1>", "logprob": -0.1, "top_logprobs": []}]}
    whole = {"choices": [{"index": 0, "message": {"content": "<EMAIL_1>"}, "logprobs": logprobs}]}
    restored = orjson.loads(Placeholders(HIDDEN).restored(orjson.dumps(whole)))
    assert restored["choices"][0]["message"]["content"] == "ada@example.com"
    assert restored["choices"][0]["logprobs"] == logprobs


def test_an_event_that_has_nothing_of_it_passes_as_it_is() -> None:
    restorer = StreamRestorer(Placeholders(HIDDEN))
    for body in (b'{"type":"running","at":1}', b'{"type":"token","chunk":{"choices":[{"delta":{"content":"x"}}]}}'):
        assert restorer.event(body) is body


def test_the_same_gets_the_same_and_numbers_in_use_are_left_out() -> None:
    clean, hidden = redact(chat("<EMAIL_1> <EMAIL_3> ada@example.com bob@example.com ada@example.com"), SCANNER)
    assert clean["messages"][0]["content"] == "<EMAIL_1> <EMAIL_3> <EMAIL_2> <EMAIL_4> <EMAIL_2>"
    assert hidden == {"<EMAIL_2>": "ada@example.com", "<EMAIL_4>": "bob@example.com"}


def test_what_shows_only_to_a_reader_stays_here() -> None:
    for text in ("ada＠example.com", "ada\u200b@exa\u00admple.com", '{"to": "ada\\u0040example.com"}'):
        with pytest.raises(NotRedactable):
            redact(chat(text), SCANNER)


def test_payloads_of_two_parts() -> None:
    payload = Payload(b'{"a":1}', b'{"a":"<EMAIL_1>"}')
    assert Payload.load(payload.dump()) == payload
    assert payload.of("cloud") == payload.redacted
    assert payload.of("gpu") == payload.of("cpu") == payload.original
    assert Payload(b"{}").dump() == b"{}"
    assert Payload.load(b"{}").of("cloud") == b"{}"
    assert load_placeholders(dump_placeholders(HIDDEN)) == HIDDEN
    assert load_placeholders(dump_placeholders({})) == load_placeholders(None) == {}


@given(st.binary(max_size=50), st.binary(max_size=50))
def test_any_two_parts(original: bytes, redacted: bytes) -> None:
    payload = Payload(original, redacted)
    assert Payload.load(payload.dump()) == payload
