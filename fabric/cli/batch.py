"""``fabric batch``: files of requests, through the Batch API."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import click

from fabric.cli.batch_estimate import estimate_command
from fabric.cli.duration import deadline_option, max_cost_option
from fabric.cli.output import json_option, local_time, print_json, print_table
from fabric.contracts.errors import Conflict, FabricError, NotFound

if TYPE_CHECKING:
    from fabric.client import Batch, Client

#: Between two lines of progress where no terminal shows a bar.
_SAY_S = 5.0
_file = click.Path(dir_okay=False, path_type=Path)


@click.group()
def batch() -> None:
    """Run files of requests: one JSON object a line, as OpenAI's Batch API takes them."""


batch.add_command(estimate_command)


@batch.command()
@click.argument("source", metavar="IN.jsonl", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("-o", "--output", required=True, type=_file, help="Where the answers go.")
@click.option("--errors", type=_file, help="Where the errors go. [default: OUT.errors.jsonl]")
@click.option("--endpoint", help="Where the lines go. [default: the first line's]")
@deadline_option
@max_cost_option
@json_option
def run(
    source: Path,
    output: Path,
    errors: Path | None,
    endpoint: str | None,
    deadline: float | None,
    max_cost: float | None,
    as_json: bool,
) -> int:
    """Run a file, wait, and fetch the answers.

    OUT.jsonl.batch.json remembers the batch: after Ctrl-C or a crash the same command goes on where
    it was, and never starts the same work twice. Remove that file to run the input again.

    With --deadline or --max-cost the lines are placed by a plan of the whole, for the least cost.
    """
    from fabric.client import Client

    with Client() as client:
        limits = {"deadline_s": deadline, "max_cost_usd": max_cost}
        started = Checkpoint.of(source, output).begin(client, source, endpoint, limits)
        _wait(started)
        _fetch(client, started, output, errors or output.with_suffix(".errors.jsonl"), named=errors is not None)
        report = started.report()
    if as_json:
        print_json({**started.values, "report": report})
    else:
        print_report(started.values, report)
    return _verdict(started)


@batch.command()
@click.argument("batch_id")
@json_option
def wait(batch_id: str, as_json: bool) -> int:
    """Wait for the end of a batch that is there already."""
    from fabric.client import Client

    with Client() as client:
        waited = client.get_batch(batch_id)
        _wait(waited)
    print_json(waited.values) if as_json else click.echo(f"{batch_id} {waited.status}")
    return _verdict(waited)


@batch.command("ls")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="Most batches to list.")
@json_option
def list_batches(limit: int, as_json: bool) -> None:
    """List batches, newest first."""
    from fabric.client import Client

    with Client() as client:
        found = list(client.batches(limit=limit))
    if as_json:
        print_json(found)
        return
    print_table(
        ("ID", "STATUS", "CREATED", "LINES", "OK", "FAILED"),
        [(b["id"], b["status"], local_time(b["created_at"]), *_counts(b)) for b in found],
    )


@batch.command()
@click.argument("batch_id")
@json_option
def show(batch_id: str, as_json: bool) -> None:
    """Show a batch: its lines, and what those that have ended took."""
    from fabric.client import Client

    with Client() as client:
        shown = client.get_batch(batch_id)
        report = shown.report()
    print_json({**shown.values, "report": report}) if as_json else print_report(shown.values, report)


@batch.command()
@click.argument("batch_id")
@json_option
def cancel(batch_id: str, as_json: bool) -> None:
    """Stop a batch. What is finished stays."""
    from fabric.client import Client

    with Client() as client:
        cancelled = client.get_batch(batch_id).cancel()
    print_json(cancelled.values) if as_json else click.echo(f"{batch_id} {cancelled.status}")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a run has done so far, kept beside its output. Written before each step that must not be done twice."""

    path: Path
    input_sha256: str
    idempotency_key: str
    file_id: str | None = None
    batch_id: str | None = None

    @classmethod
    def of(cls, source: Path, output: Path) -> Checkpoint:
        """The one that is there, else a new one.

        Raises:
            Conflict: the one that is there is of another input.
        """
        with source.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        path = output.with_name(f"{output.name}.batch.json")
        try:
            known = cls(path=path, **json.loads(path.read_text("utf-8")))
        except FileNotFoundError:
            return cls(path, digest, f"batch-run-{uuid4().hex}").save()
        except (ValueError, TypeError):
            raise Conflict(f"{path} can't be read: remove it to start anew.") from None
        if known.input_sha256 != digest:
            raise Conflict(f"{path} belongs to another input: remove it, or choose another output file.")
        return known

    def begin(self, client: Client, source: Path, endpoint: str | None, limits: dict[str, float | None]) -> Batch:
        """The batch of this run: the one that is known, or a new one.

        Raises:
            NotFound: the fabric doesn't know the one that is known here.
        """
        from fabric._client_wire import endpoint_of

        if self.batch_id:
            try:
                return client.get_batch(self.batch_id)
            except NotFound:
                raise NotFound(
                    f"This fabric has no batch {self.batch_id}: remove {self.path} to run the input anew."
                ) from None
        file_id = self.file_id or client.upload(source)
        uploaded = replace(self, file_id=file_id).save()
        endpoint = endpoint or endpoint_of(source)
        started = client.create_batch(file_id, endpoint, **limits, idempotency_key=self.idempotency_key)
        replace(uploaded, batch_id=started.id).save()
        return started

    def save(self) -> Checkpoint:
        values = {name: value for name, value in asdict(self).items() if name != "path"}
        _replace(self.path, lambda temporary: temporary.write_text(json.dumps(values, indent=2) + "\n", "utf-8"))
        return self


def print_report(values: dict[str, Any], report: dict[str, Any]) -> None:
    total, ok, failed = _counts(values)
    if plan := (values.get("fabric") or {}).get("plan"):
        _print_plan(plan)
    seconds, rate, elapsed = report["seconds"], report["tokens_per_s"], report["elapsed_s"]
    click.echo(f"{values['id']}  {values['status']}  lines {total}, ok {ok}, failed {failed}")
    print_table(
        ("TIER", "DEPLOYMENT", "LINES", "TOKENS IN", "TOKENS OUT", "COST USD"),
        [
            (p["tier"], p["deployment"], p["lines"], p["input_tokens"], p["output_tokens"], f"{p['cost_usd']:.6f}")
            for p in report["places"]
        ],
    )
    if rate is not None:
        line = f"a line took {seconds['p50']:.2f} s (p50), {seconds['p95']:.2f} s (p95)" if seconds["p50"] else ""
        click.echo(f"{line}; {rate:.0f} tokens/s written over {elapsed:.1f} s".removeprefix("; "))


def _print_plan(plan: dict[str, Any]) -> None:
    """What was to come when it was made; nothing, when all had been handed over."""
    places = [p for p in plan["places"] if p["lines"]]
    if places:
        what = ", ".join(f"{p['lines']:,} on {p['deployment']}" for p in places)
        click.echo(f"planned at {local_time(plan['planned_at'])}: {what}; ${plan['expected_cost_usd']:.6f} to come")
    if plan["shortfall"]:
        click.echo(f"not all can be done: {plan['shortfall']['detail']}")


def _counts(values: dict[str, Any]) -> tuple[int, int, int]:
    counts = values.get("request_counts") or {}
    return counts.get("total", 0), counts.get("completed", 0), counts.get("failed", 0)


def _wait(started: Batch) -> None:
    try:
        started.wait(progress=None if sys.stderr.isatty() else _plain(started.id))
    except KeyboardInterrupt:
        hint = f"`fabric batch wait {started.id}` waits again, `fabric batch cancel {started.id}` stops it"
        click.echo(f"{started.id} goes on: {hint}", err=True)
        raise


def _plain(name: str) -> Callable[[int, int | None], None]:
    """Progress as lines: not too many, and always the last."""
    said: dict[str, Any] = {"at": 0.0, "done": -1}

    def say(done: int, total: int | None) -> None:
        if done != said["done"] and (done == total or time.monotonic() - said["at"] >= _SAY_S):
            said.update(at=time.monotonic(), done=done)
            click.echo(f"{name}: {done} of {total or '?'} lines", err=True)

    return say


def _fetch(client: Client, ended: Batch, output: Path, errors: Path, *, named: bool) -> None:
    """Writes whole files or none: a reader never sees half of one."""
    _download(client, ended.values.get("output_file_id"), output)
    if named or errors.exists() or ended.values.get("error_file_id"):
        _download(client, ended.values.get("error_file_id"), errors)
    _, ok, failed = _counts(ended.values)
    place = f" in {errors}" if ended.values.get("error_file_id") else ""
    click.echo(f"{ended.id} {ended.status}: {ok} answers in {output}, {failed} errors{place}", err=True)


def _download(client: Client, file_id: str | None, path: Path) -> None:
    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            for chunk in client.content(file_id) if file_id else ():
                file.write(chunk)

    _replace(path, write)


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    temporary = path.with_name(f"{path.name}.part")
    write(temporary)
    temporary.replace(path)


def _verdict(ended: Batch) -> int:
    if ended.status == "completed":
        return 0
    reasons = [problem["message"] for problem in (ended.values.get("errors") or {}).get("data", ())]
    raise FabricError(f"{ended.id} {ended.status}. {' '.join(reasons[:3])}".rstrip())
