"""What the recorder's process writes into the audit trail, from the ends of jobs and the lines of batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest

from fabric.cli import boundaries
from fabric.contracts.catalog import Catalog
from fabric.contracts.errors import EngineError, ErrorInfo
from fabric.contracts.job import JobSpec, JobState
from fabric.contracts.job_seals import HomeSeals
from fabric.contracts.secret import Secrets
from fabric.ledger import Ledger
from fabric.recorder import Recorder
from fabric.routing import decide, policy_hash, refusal
from fabric.store import Store, transitions
from fabric.store.transitions import NewJob, Rejection
from fabric.trail import Trail

if TYPE_CHECKING:
    from tests.recorder.conftest import Ended

PLACES = [
    {"name": "here", "engine": "mock", "tier": "cpu", "context_window": 16},
    {"name": "there", "engine": "openai", "tier": "cloud", "region": "us"},
]
CATALOG = Catalog.model_validate({"models": [{"name": "small", "deployments": PLACES}]})


class Notebook:
    """Takes what the trail would be told."""

    def __init__(self) -> None:
        self.notes: list[tuple[Any, ...]] = []

    def note(self, action: str, actor: str, *, tenant: str, subject: str | None = None, detail: Any = None) -> None:
        self.notes.append((action, actor, tenant, subject, detail))

    def policy_in_force(self, policy: str) -> None:
        self.notes.append(("policy", policy))


@pytest.fixture
def notebook() -> Notebook:
    return Notebook()


def rejected(store: Store, ledger: Ledger, notebook: Notebook, error: ErrorInfo | None, **values: Any) -> None:
    """A job that the scheduler found no place for, as it goes through the recorder."""
    spec = JobSpec("job_" + "0" * 26, "/v1/chat/completions", "small", tenant="acme", key_id="key_1", **values)
    decision = decide(spec, CATALOG, policy_hash(CATALOG))
    store(transitions.accept([NewJob(spec, b"sealed")]))
    store(transitions.take([(spec.lane, 1)]))
    told = error or refusal(spec, decision, CATALOG)
    store(transitions.reject([Rejection(spec.id, JobState.FAILED, told, decision.dump())]))
    trail = cast(Trail, notebook)
    secrets = Secrets(["s" * 32])
    Recorder(
        *(store, ledger, HomeSeals(secrets)),
        ended=lambda completion: boundaries.note_blocked(trail, completion),
    ).step()


@pytest.mark.parametrize(
    ("values", "reasons"),
    [
        ({"allowed_tiers": ("gpu",)}, "permission"),
        ({"privacy": "restricted", "prompt_tokens": 100}, "privacy"),
        ({"privacy": "restricted", "allowed_tiers": ("cloud",)}, "permission,privacy"),
    ],
)
def test_a_job_that_a_boundary_left_no_place(
    store: Store, ledger: Ledger, notebook: Notebook, values: dict[str, Any], reasons: str
) -> None:
    rejected(store, ledger, notebook, None, **values)
    detail = {"reason": reasons, "model": "small", "label": values.get("privacy", "internal")}
    assert notebook.notes == [("request.blocked", "key_1", "acme", None, detail)]


@pytest.mark.parametrize(
    ("error", "values"),
    [(None, {"needs": ("vision",)}), (EngineError("no_eligible_deployment: privacy (").info, {})],
)
def test_other_failures_are_no_matter_of_boundaries(
    store: Store, ledger: Ledger, notebook: Notebook, error: ErrorInfo | None, values: dict[str, Any]
) -> None:
    rejected(store, ledger, notebook, error, **values)
    assert notebook.notes == []


def test_lines_whose_label_was_raised(ended: Ended, notebook: Notebook) -> None:
    batch = ended.batch(1)
    boundaries.note_raised_line(cast(Trail, notebook), batch, "public", "restricted")
    detail = {"from": "public", "to": "restricted"}
    assert notebook.notes == [("label.raised", "open", "default", "batch_1", detail)]


def test_lines_that_were_redacted(ended: Ended, notebook: Notebook) -> None:
    batch = ended.batch(1)
    spec = JobSpec(id="job_1", endpoint="/v1/chat/completions", model="m", privacy="confidential", entities=("email",))
    boundaries.note_redacted_line(cast(Trail, notebook), batch, spec)
    detail = {"label": "confidential", "entities": ("email",)}
    assert notebook.notes == [("request.redacted", "open", "default", "batch_1", detail)]


def test_another_policy(notebook: Notebook) -> None:
    trail = cast(Trail, notebook)
    assert boundaries.noted_policy(trail, None) is None
    assert boundaries.noted_policy(trail, CATALOG) is CATALOG
    assert notebook.notes == [("policy", policy_hash(CATALOG))]
