"""``fabric submit``."""

from __future__ import annotations

import json
import sys
from typing import IO, TYPE_CHECKING, Any

import click

from fabric.cli.output import json_option, print_json
from fabric.contracts.errors import InvalidRequest
from fabric.contracts.job import ENDPOINTS, PRIORITIES

if TYPE_CHECKING:
    from fabric.client import Job

_LABELS = ("public", "internal", "confidential", "restricted")


@click.command()
@click.argument("prompt", required=False)
@click.option("--json-body", type=click.File("rb"), help="A whole request body instead of a prompt; - reads stdin.")
@click.option("--endpoint", type=click.Choice(ENDPOINTS), default=ENDPOINTS[0], help="Where the body goes.")
@click.option("--model", help="A model's name. [default: the fabric's first]")
@click.option("--max-tokens", type=click.IntRange(1), help="Most tokens of the answer.")
@click.option("--privacy", type=click.Choice(_LABELS), help="What the job's text is.")
@click.option("--priority", type=click.Choice(PRIORITIES), help="Who goes first.")
@click.option("--deadline-s", type=click.FloatRange(0, min_open=True), help="Seconds after which nobody wants it.")
@click.option("--stream", is_flag=True, help="Print the answer as it is written.")
@click.option("--wait/--no-wait", default=True, help="Wait for the answer, or print the job's id. [default: wait]")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), help="Seconds to wait; the job goes on after them.")
@json_option
def submit(
    prompt: str | None,
    json_body: IO[bytes] | None,
    endpoint: str,
    model: str | None,
    stream: bool,
    wait: bool,
    timeout: float | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Ask a model, and wait for the answer. PROMPT - reads stdin.

    The job is the fabric's from the moment of its acceptance: Ctrl-C stops the waiting, not the job.
    """
    if (prompt is None) == (json_body is None):
        raise click.UsageError("Give a PROMPT, or a body with --json-body.")
    if stream and not wait:
        raise click.UsageError("--stream shows the answer, --no-wait doesn't wait for it: choose one.")
    from fabric.client import Client

    request = _body(json_body) if json_body else (sys.stdin.read() if prompt == "-" else str(prompt))
    params = _params(options, request, stream)
    with Client() as client:
        job = client.submit(request, model=model, endpoint=endpoint, **params)
        if not wait:
            print_json({"id": job.id}) if as_json else click.echo(job.id)
            return
        try:
            _show(job, stream, timeout, as_json)
        except KeyboardInterrupt:
            click.echo(f"{job.id} goes on: see `fabric jobs show {job.id}`, `fabric jobs cancel {job.id}`", err=True)
            raise


def _body(file: IO[bytes]) -> dict[str, Any]:
    try:
        body = json.load(file)
    except ValueError as error:
        raise InvalidRequest(f"{file.name} isn't JSON: {error}.") from None
    if not isinstance(body, dict):
        raise InvalidRequest(f"{file.name} must hold one JSON object: the body of a request.")
    return body


def _params(options: dict[str, Any], request: str | dict[str, Any], stream: bool) -> dict[str, Any]:
    """The request's fields that the options set, over those of a body."""
    params: dict[str, Any] = {"stream": True} if stream else {}
    if options["max_tokens"] is not None:
        params["max_tokens"] = options["max_tokens"]
    ours = {name: options[name] for name in ("privacy", "priority", "deadline_s") if options[name] is not None}
    if ours:
        given = request.get("fabric") if isinstance(request, dict) else None
        params["fabric"] = {**(given or {}), **ours}
    return params


def _show(job: Job, stream: bool, timeout: float | None, as_json: bool) -> None:
    if stream:
        for event in job.events(timeout=timeout):
            if as_json:
                click.echo(json.dumps({"id": event.number, **event.data}, ensure_ascii=False))
            else:
                click.echo(event.text, nl=False)
        if not as_json:
            click.echo()
            job.result()
        return
    answer = job.result(timeout)
    if as_json:
        print_json(job.refresh())
    else:
        click.echo(answer.text or json.dumps(answer.body, ensure_ascii=False))
