"""The ``fabric`` command: finds the subcommand, and turns errors into ``error:``, ``hint:`` and a status.

A subcommand's module is imported when it is called, so that ``fabric --help`` is quick.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

import click

from fabric.contracts.errors import ConfigError, FabricError

#: As in ``sysexits.h``: the configuration is wrong, and the same call will fail again.
EX_CONFIG = 78
_INTERRUPTED = 130

#: name -> (module, what it does)
_COMMANDS = {
    "up": ("up", "Run the whole fabric on this machine."),
    "submit": ("submit", "Ask a model, and wait for the answer."),
    "batch": ("batch", "Run files of requests."),
    "jobs": ("jobs", "List, show, cancel and delete jobs."),
    "route": ("route", "Show where a request would go, and why."),
    "policy": ("policy", "Check and try policies, and explain a job's decision."),
    "usage": ("usage", "Show requests and tokens."),
    "costs": ("costs", "Show what it cost, and what was saved."),
    "budgets": ("budgets", "Show budgets, and what is left of them."),
    "dlq": ("dlq", "List, show, replay and drop parked jobs."),
    "webhooks": ("webhooks", "Show deliveries of webhooks, and send events again."),
    "status": ("status", "Show tiers, workers, slots and what waits."),
    "doctor": ("doctor", "Check that this machine and its configuration can work."),
    "keys": ("keys", "Make, list, rotate and revoke API keys."),
    "security": ("security", "Give each role a user of its own in Redis and RabbitMQ."),
    "audit": ("audit", "Check and export the audit trail."),
    "verify": ("verify", "Check that a deployment's answers can be relied on."),
    "bench": ("bench", "Measure deployments, and compare with an earlier run."),
    "fit": ("fit", "Say whether a model fits in memory here."),
    "api": ("processes", "Run the HTTP API."),
    "scheduler": ("processes", "Run the scheduler."),
    "worker": ("processes", "Run a worker of one tier."),
    "recorder": ("processes", "Run the recorder: from finished jobs to the ledger."),
    "migrate": ("processes", "Bring the ledger's tables up to date."),
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = import_module(f"fabric.cli.{_COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in _COMMANDS.items()])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="inference-fabric", prog_name="fabric")
def fabric() -> None:
    """One door to every place a model can run.

    `fabric up` starts it; `fabric submit "hello"` uses it. FABRIC_URL and FABRIC_API_KEY say where it
    is, for the commands that use one.
    """


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Answers the exit status: 0, 1 for a failure, 2 for a wrong call, 78 for a wrong configuration."""
    try:
        status = fabric.main(arguments, prog_name="fabric", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        _report(error.format_message(), f"{context.command_path} --help" if context else None)
        return error.exit_code
    except FabricError as error:
        _report(error.message, _HINTS.get(error.error_code))
        return EX_CONFIG if isinstance(error, ConfigError) else 1
    except TimeoutError as error:
        _report(str(error) or "It took too long.", None)
        return 1
    except (click.Abort, KeyboardInterrupt):
        return _INTERRUPTED
    except BrokenPipeError:
        # Who reads our output has gone. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1


_HINTS = {
    "unreachable": "start one with `fabric up`, or say with FABRIC_URL where it is",
    "invalid_api_key": "set FABRIC_API_KEY to a key of this fabric; `fabric keys create --tenant NAME` makes one",
    "insufficient_scope": "`fabric keys create --scope` makes a key with the scope that is missing",
    "model_not_found": "`fabric status` lists what there is",
}


def _report(message: str, hint: str | None) -> None:
    click.echo(f"error: {message}", err=True)
    if hint:
        click.echo(f"hint: {hint}", err=True)
