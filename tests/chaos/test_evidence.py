"""What the receiver of webhooks wrote down is judged by the signature and by what it holds."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from storm.evidence import events, untold

from fabric.webhooks.signature import headers

KEY = b"k" * 32
BODY = b'{"id": "evt_1", "type": "job.succeeded", "data": {"id": "job_1"}}'


def judged(
    folder: Path, body: bytes = BODY, key: bytes = KEY, event_id: str = "evt_1", status: int = 204
) -> tuple[bool, ...]:
    log = folder / "log"
    sent = headers(key, event_id, 1_000, body)
    log.write_text(json.dumps({"path": "/ended", "headers": sent, "body": body.decode(), "status": status}) + "\n")
    (event,) = events(log, KEY)
    assert (event.hook, event.id, event.type, event.subject) == ("ended", event_id, "job.succeeded", "job_1")
    return event.signed, event.leaks, event.kept


def test_a_good_event(tmp_path: Path) -> None:
    assert judged(tmp_path) == (True, False, True)
    assert judged(tmp_path, status=503) == (True, False, False)


@pytest.mark.parametrize("values", [{"key": b"x" * 32}, {"event_id": "evt_2"}])
def test_a_signature_that_is_not_good(tmp_path: Path, values: dict[str, object]) -> None:
    assert judged(tmp_path, **values)[0] is False  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["ask-12-public", "ask-12 gabc 0 1", " ".join(["tok"] * 8)])
def test_a_text_in_it(tmp_path: Path, text: str) -> None:
    body = BODY.replace(b'"job_1"', json.dumps("job_1").encode() + b', "error": ' + json.dumps(text).encode())
    assert judged(tmp_path, body)[1] is True


def test_what_is_still_to_be_told(sqlite_ledger: str) -> None:
    """An end of a batch is no event yet, and counts."""
    database = Path(sqlite_ledger.removeprefix("sqlite:///"))
    assert untold(database) == 0
    with sqlite3.connect(database) as connection:
        connection.execute("INSERT INTO ended_batches (id) VALUES ('batch_1')")
    assert untold(database) == 1
