"""Lines of a batch: the cloud sees placeholders, the output file has what they hide."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import orjson

from fabric.contracts.catalog import Catalog
from fabric.store import transitions
from fabric.store.transitions import Dispatch

if TYPE_CHECKING:
    from tests.batches.conftest import Desk

ADA = "ada@example.com"
CHAT = "/v1/chat/completions"
CATALOG = Catalog.model_validate(
    {
        "models": [
            {
                "name": "small",
                "deployments": [
                    {"name": "away", "engine": "openai", "tier": "cloud", "model": "x", "data_policy": "zero_retention"}
                ],
            }
        ],
        "privacy": {"detectors": [{"entity": "secret", "raise_to": "restricted"}]},
    }
)


def line(custom_id: str, text: str, **options: str) -> dict[str, Any]:
    body = {"model": "small", "messages": [{"role": "user", "content": text}], "fabric": options}
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body}


def test_lines_are_redacted_on_their_way_and_restored_in_the_output(
    make_desk: Callable[[str], Desk], sqlite_ledger: str
) -> None:
    desk = make_desk(sqlite_ledger)
    desk.catalog = CATALOG
    seen: dict[str, str] = {}

    def answer() -> None:
        lanes = [(lane.name, 10) for lane in desk.store(transitions.room()).lanes]
        taken = desk.store(transitions.take(lanes)) if lanes else []
        dispatches = [Dispatch(job.spec.id, "away", "cloud", b"{}") for job in taken]
        attempts = desk.store(transitions.dispatch(dispatches))
        sent = [(job.spec.id, attempt) for job, attempt in zip(taken, attempts, strict=True)]
        for job in desk.store(transitions.claim("w1", sent, deployment="away")):
            text = desk.request(job)["body"]["messages"][0]["content"]
            seen[str(job.spec.custom_id)] = text
            choice = {"index": 0, "message": {"role": "assistant", "content": f"You said: {text}"}}
            result = orjson.dumps({"choices": [choice]})
            desk.store(transitions.commit([desk.succeed(job, result)]))

    redacted: list[tuple[str, tuple[str, ...]]] = []
    with desk.serving(redacted=lambda batch, spec: redacted.append((spec.privacy, spec.entities))):
        lines = [
            line("mail", f"write to {ADA}, <EMAIL_1>", privacy="confidential"),
            line("plain", f"write to {ADA}", privacy="internal"),
        ]
        batch_id = desk.batch(lines)
        batch = desk.drive(lambda: desk._at(batch_id, ("completed", "failed")), answer)
    assert batch.status == "completed"
    assert redacted == [("confidential", ("email",))], "the line that was changed, for the audit trail"
    assert seen == {"mail": "write to <EMAIL_2>, <EMAIL_1>", "plain": f"write to {ADA}"}
    said = {
        row["custom_id"]: row["response"]["body"]["choices"][0]["message"]["content"] for row in desk.output(batch_id)
    }
    assert said == {"mail": f"You said: write to {ADA}, <EMAIL_1>", "plain": f"You said: write to {ADA}"}


def test_a_lines_label_is_raised(make_desk: Callable[[str], Desk], sqlite_ledger: str) -> None:
    desk = make_desk(sqlite_ledger)
    desk.catalog = CATALOG
    raised: list[tuple[str, str]] = []
    with desk.serving(raised=lambda batch, asked, got: raised.append((asked, got))):
        desk.batch([line("key", "use AKIAIOSFODNN7EXAMPLE", privacy="public")])
        lanes = desk.until(lambda: desk.store(transitions.room()).lanes)
        (job,) = desk.store(transitions.take([(lane.name, 1) for lane in lanes]))
    assert (job.spec.privacy, job.spec.raised_from, job.spec.entities) == ("restricted", "public", ("secret",))
    assert raised == [("public", "restricted")]
