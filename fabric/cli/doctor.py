"""``fabric doctor``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import click

from fabric.cli.output import json_option, print_json, print_table
from fabric.cli.start import config_option, data_dir_option, environ

_MARKS = {"ok": "ok", "warning": "warn", "error": "FAIL"}


@click.command()
@config_option
@data_dir_option
@json_option
def doctor(config: Path | None, data_dir: Path | None, as_json: bool) -> int:
    """Check that this machine and its configuration can work, and say what to do where they can't.

    Nothing is changed, and nothing needs to run. Ends with 1 where something is wrong, 0 where all is
    right or only worth a look.
    """
    from fabric.cli.checkup import examine

    findings = examine(config, environ(data_dir=data_dir))
    counts = Counter(finding.level for finding in findings)
    healthy = not counts["error"]
    if as_json:
        print_json({"healthy": healthy, "findings": [finding.asdict() for finding in findings]})
    else:
        print_table(("", "PART", "FOUND"), [(_MARKS[f.level], f.part, f.said) for f in findings])
        for finding in findings:
            if finding.todo:
                click.echo(f"\n{finding.part}: {finding.todo}")
    return 0 if healthy else 1
