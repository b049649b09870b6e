"""``fabric verify``."""

from __future__ import annotations

from collections import Counter
from typing import Any

import click

from fabric.cli.output import json_option, print_json, print_table


@click.command()
@click.argument("deployment")
@click.option(
    "--timeout", type=click.FloatRange(0, min_open=True), default=120.0, help="Seconds for one request. [default: 120]"
)
@click.option(
    "--whole-window",
    is_flag=True,
    help="Fill the whole context window once, instead of 1,024 tokens of it: slow, and expensive where tokens cost.",
)
@json_option
def verify(deployment: str, timeout: float, whole_window: bool, as_json: bool) -> int:
    """Check that a deployment's answers can be relied on.

    Asks it about twenty small things through the running fabric, and nowhere else. Each check has passed,
    failed, or couldn't be made there. The exit status is 1 when one failed.
    """
    from fabric._client_http import Http, Options
    from fabric.cli.verify_suite import Subject, find, suite

    http = Http(Options())
    try:
        place = find(http, deployment)
        subject = Subject(http, place, timeout)
        checks = list(suite(subject, fill=None if whole_window else 1024))
    finally:
        http.close()
    failed = any(check.state == "failed" for check in checks)
    if as_json:
        told: dict[str, Any] = {name: place[name] for name in ("model", "tier", "engine", "context_window")}
        shown = [{"name": c.name, "state": c.state, "detail": c.detail, "seconds": round(c.seconds, 3)} for c in checks]
        print_json({"object": "verification", "deployment": deployment, **told, "passed": not failed, "checks": shown})
    else:
        print_table(("CHECK", "STATE", "DETAIL"), [(c.name, c.state, c.detail) for c in checks])
        count = Counter(check.state for check in checks)
        click.echo(f"{deployment}: {count['passed']} passed, {count['failed']} failed, {count['unchecked']} unchecked")
    return 1 if failed else 0
