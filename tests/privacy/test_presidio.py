"""Presidio as a detector: the real one, over a spaCy pipeline that knows a few names, made on the spot."""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fabric.contracts.catalog import Catalog, PrivacyRules
from fabric.contracts.payload import Payload, load_placeholders
from fabric.privacy import Placeholders, Screened, presidio, screen_of
from fabric.privacy.presidio import Part, Presidio, Unread, pieces
from fabric.privacy.reading import Reading
from fabric.privacy.redaction import redact
from fabric.privacy.scanner import Scanner
from fabric.routing import decide, policy_hash

FOLDER = Path(os.environ.get("PRESIDIO_HOME") or Path.home() / ".cache" / "inference-fabric" / "presidio")
#: As `raise_to` of these says, names raise a label, and places only count where something redacts.
DETECTORS = [
    {"entity": "person", "presidio": "PERSON", "raise_to": "confidential"},
    {"entity": "place", "presidio": "LOCATION"},
]
Rules = Callable[..., Catalog]
Screens = Callable[..., Screened]


def eventually(look: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not look():
        assert time.monotonic() < until, "it didn't come about"
        time.sleep(0.01)


def chat(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


@pytest.fixture(scope="session")
def installed() -> Iterator[None]:
    """Presidio can be imported, behind all that is installed."""
    if not (FOLDER / "made").exists():
        pytest.skip(f"no Presidio in {FOLDER}: ./scripts/get-presidio fetches it")
    sys.path.append(str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))


@pytest.fixture(scope="session")
def model(installed: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    import spacy

    pipeline = spacy.blank("en")
    ruler: Any = pipeline.add_pipe("entity_ruler")
    ruler.add_patterns(
        [
            {"label": "PERSON", "pattern": "Ada Lovelace"},
            {"label": "PERSON", "pattern": "Bob Noyce"},  # of two words: in `x_Bob` spaCy sees no `Bob`
            {"label": "PERSON", "pattern": "Łukasz Żółw"},
            {"label": "GPE", "pattern": "Zürich"},
        ]
    )
    folder = tmp_path_factory.mktemp("spacy") / "en_few_names"
    pipeline.to_disk(folder)
    return str(folder)


@pytest.fixture
def rules(model: str, catalog: Rules) -> Rules:
    def made(*, detectors: list[dict[str, Any]] | None = None, **asked: Any) -> Catalog:
        wanted = {"models": {"en": model}, "timeout_s": 60, **asked}
        return catalog(detectors=DETECTORS if detectors is None else detectors, presidio=wanted)

    return made


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"detectors": [{"entity": "person", "presidio": "PERSON"}]}, r"`privacy\.presidio`"),
        ({"presidio": {"models": {"en": "m"}}}, "nothing to find"),
        ({"detectors": DETECTORS, "presidio": {"models": {}}}, "models"),
        ({"detectors": DETECTORS, "presidio": {"models": {"en": "m"}, "modles": {}}}, "modles"),
        ({"detectors": [{"entity": "p", "presidio": "PERSON", "pattern": "x"}]}, "leave `pattern` out"),
        ({"detectors": [{"entity": "image", "presidio": "PERSON"}]}, "images"),
        ({"detectors": [{"entity": "p", "presidio": "person"}]}, "presidio"),
    ],
)
def test_what_the_file_may_not_say(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        PrivacyRules.model_validate(values)


def test_a_name_raises_the_label_and_gets_a_placeholder(rules: Rules, screened: Screens) -> None:
    text = "Ada Lovelace of Zürich, ada@example.com; ask Ada Lovelace"
    found = screened(rules(), chat(text))
    assert (found.spec.privacy, found.spec.raised_from) == ("confidential", "internal")
    assert found.spec.entities == ("email", "person", "place")
    assert found.spec.redacted
    payload = Payload.load(found.payload)
    away = orjson.loads(payload.of("cloud"))["body"]["messages"][0]["content"]
    assert away == "<PERSON_1> of <PLACE_1>, <EMAIL_1>; ask <PERSON_1>"
    assert orjson.loads(payload.of("cpu"))["body"]["messages"][0]["content"] == text
    hidden = load_placeholders(found.placeholders)
    assert hidden == {"<PERSON_1>": "Ada Lovelace", "<PLACE_1>": "Zürich", "<EMAIL_1>": "ada@example.com"}
    assert Placeholders(hidden).text.put_back(away) == text


def test_what_is_found_once_is_replaced_everywhere(rules: Rules, screened: Screens) -> None:
    """A reader that goes by context misses the second, and the first is worth nothing then."""
    body = {
        "messages": [
            {"role": "system", "content": "today: Bob Noyce"},
            {"role": "user", "content": "is x=Bob Noyce in? Bob Noyces are."},
            {
                "role": "assistant",
                "tool_calls": [
                    {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"to":"for=Bob Noyce"}'}}
                ],
            },
            {"role": "tool", "tool_call_id": "c", "content": "Ada Lovelace, x"},
        ]
    }
    found = screened(rules(), body)
    away = Payload.load(found.payload).of("cloud").decode()
    assert "=Bob" not in away and "Ada" not in away
    assert "is x=<PERSON_1> in? Bob Noyces are." in away
    assert '{\\"to\\":\\"for=<PERSON_1>\\"}' in away


@pytest.mark.parametrize(
    "body",
    [
        chat("x") | {"user": "Ada Lovelace"},
        {"prompt": "by Ada Lovelace"},
        {"prompt": ["x", "Ada Lovelace"]},
        {"input": ["x", "Ada Lovelace"]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi Ada Lovelace"}]}]},
        chat("x") | {"tools": [{"type": "function", "function": {"name": "f", "description": "for Ada Lovelace"}}]},
        chat("x")
        | {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"enum": ["Ada Lovelace"]}}}]},
    ],
)
def test_every_text_is_read(body: dict[str, Any], rules: Rules, screened: Screens) -> None:
    found = screened(rules(), body)
    assert found.spec.privacy == "confidential"
    assert found.spec.redacted
    assert b"Ada" not in Payload.load(found.payload).of("cloud")


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "user", "content": "x", "name": "Ada Lovelace"}]},
        chat("of Ada\u00a0Lovelace"),  # reads the same, and is written otherwise
        chat("Ada Lovelace")
        | {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"Ada Lovelace": {}}}}]},
    ],
)
def test_what_cant_be_replaced_stays_at_home(body: dict[str, Any], rules: Rules, screened: Screens) -> None:
    catalog = rules()
    spec = screened(catalog, body).spec
    assert "person" in spec.entities
    assert not spec.redacted
    assert [out.deployment for out in decide(spec, catalog, policy_hash(catalog)).eliminated] == ["away"]


def test_an_entity_may_be_left_where_it_is(rules: Rules, screened: Screens) -> None:
    catalog = rules(detectors=[*DETECTORS[:1], {"entity": "place", "presidio": "LOCATION", "redact": False}])
    found = screened(catalog, chat("Ada Lovelace of Zürich"))
    assert found.spec.entities == ("person", "place")
    assert b"<PERSON_1> of Z" in Payload.load(found.payload).of("cloud")


def test_without_finds_nothing_changes(rules: Rules, screened: Screens) -> None:
    found = screened(rules(), chat("nothing in here"))
    assert (found.spec.privacy, found.spec.entities, found.placeholders) == ("internal", (), b"")


def test_an_own_recognizer_of_presidio_asks_nobody(
    rules: Rules, screened: Screens, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of addresses of mail fetches a list from the network on its first use, as it comes."""
    called: list[Any] = []

    def refuses(*address: Any, **_: Any) -> Any:
        called.append(address)
        raise OSError

    monkeypatch.setattr(socket, "getaddrinfo", refuses)
    monkeypatch.setattr(socket.socket, "connect", refuses)
    catalog = rules(detectors=[{"entity": "mail", "presidio": "EMAIL_ADDRESS", "raise_to": "restricted"}])
    spec = screened(catalog, chat("to ada@example.com")).spec
    assert spec.privacy == "restricted"
    assert "mail" in spec.entities and not called


@pytest.mark.parametrize(
    ("presidio_settings", "kind"),
    [
        ({"models": {"en": "/nowhere/at-all"}}, "PERSON"),
        ({}, "NO_SUCH_THING"),
        ({"models": {"xx": "en_nothing"}}, "PERSON"),
    ],
)
def test_what_cant_work_counts_as_fired(
    presidio_settings: dict[str, Any], kind: str, rules: Rules, screened: Screens, caplog: pytest.LogCaptureFixture
) -> None:
    catalog = rules(detectors=[{"entity": "person", "presidio": kind, "raise_to": "restricted"}], **presidio_settings)
    spec = screened(catalog, chat("nothing in here")).spec
    assert (spec.privacy, spec.entities, spec.redacted) == ("restricted", ("person",), False)
    assert "Presidio can't work" in caplog.text


def test_a_missing_package_counts_as_fired(
    catalog: Rules, screened: Screens, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "spacy", None)
    detectors = [{"entity": "person", "presidio": "PERSON", "raise_to": "restricted"}]
    rules = catalog(detectors=detectors, presidio={"models": {"en": "missing_package"}})
    assert screened(rules, chat("nothing in here")).spec.privacy == "restricted"
    assert "inference-fabric[presidio]" in caplog.text


def test_what_breaks_or_takes_too_long_counts_as_fired(
    catalog: Rules,
    screened: Screens,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    released = threading.Event()

    def reads(text: str) -> list[Part]:
        if "break" in text:
            raise RuntimeError(text)
        if "hang" in text:
            released.wait(60)
        return []

    monkeypatch.setattr(presidio, "load", lambda *_: reads)
    rules = catalog(detectors=DETECTORS, presidio={"models": {"en": "played"}, "timeout_s": 0.2})
    screened(rules, chat("loaded"))
    with caplog.at_level(logging.WARNING):
        assert screened(rules, chat("break here")).spec.entities == ("person", "place")
    assert "RuntimeError" in caplog.text and "break here" not in caplog.text
    spec = screened(rules, chat("hang")).spec
    assert (spec.privacy, spec.redacted) == ("confidential", False)
    # It still hangs: who comes now is told at once, or when their own time is over.
    assert screened(rules, chat("fine")).spec.privacy == "confidential"
    released.set()
    reader = presidio.presidio_of(rules.privacy)
    assert reader is not None

    def read() -> bool:
        try:
            return reader.read(["fine"]) == {"fine": []}
        except Unread:
            return False

    eventually(read)
    assert screened(rules, chat("fine")).spec.privacy == "internal"


def test_a_reload_loads_no_model_again(catalog: Rules, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[Any] = []

    def load(*asked: Any) -> Any:
        loads.append(asked)
        return lambda text: []

    monkeypatch.setattr(presidio, "load", load)
    wanted = {"models": {"en": "played once"}}
    one, other = (catalog(detectors=DETECTORS, presidio=wanted, default=label) for label in ("public", "internal"))
    readers: list[Presidio | None] = [presidio.presidio_of(rules.privacy) for rules in (one, other)]
    assert readers[0] is readers[1] is not None
    readers[0].read(["x"])
    assert len(loads) == 1
    assert screen_of(one).slow and not screen_of(catalog()).slow


@given(st.text(alphabet="ab \n", max_size=300))
def test_pieces_are_the_text(text: str) -> None:
    cut = list(pieces(text, 20))
    assert "".join(piece for _, piece in cut) == text
    assert all(text.startswith(piece, offset) and 0 < len(piece) <= 20 for offset, piece in cut)


NAMES = ["Ada Lovelace", "Łukasz Żółw", "Bob", "李小龙"]
WORDS = st.sampled_from([*NAMES, "x", "ü", "Bobby", "Bob's", "a@b.example", "<PERSON_2>"])


@given(st.lists(WORDS, max_size=12), st.sampled_from([" ", ", ", "\n", "”, “"]), st.data())
def test_no_reading_leaves_a_find_behind(words: list[str], gap: str, data: st.DataObject) -> None:
    """Whichever of the places where names stand were found: these names are gone from all, and come back."""
    text = gap.join(words)
    parts = [
        Part(start, start + len(name), "PERSON")
        for name in NAMES
        for start in range(len(text))
        if text.startswith(name, start) and data.draw(st.booleans())
    ]
    found = {text[part.start : part.end] for part in parts}
    clean, hidden = redact(chat(text), Scanner(), (), Reading({text: parts}, {"PERSON": ["person"]}))
    said = clean["messages"][0]["content"]
    assert Placeholders(hidden).text.put_back(said) == text
    assert not found.intersection(said.replace("'s", "").split(gap))
    assert said.count("Bobby") + said.count(">by") == words.count("Bobby")
