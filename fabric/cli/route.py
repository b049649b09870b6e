"""``fabric route``."""

from __future__ import annotations

import sys
from typing import Any

import click

from fabric.cli.decision import show_decision
from fabric.cli.output import json_option, print_json
from fabric.contracts.catalog import PRIVACY_LABELS
from fabric.contracts.job import PRIORITIES


@click.command()
@click.argument("prompt")
@click.option("--model", help="A model's name. [default: the fabric's first]")
@click.option("--max-tokens", type=click.IntRange(1), help="Most tokens of the answer.")
@click.option("--privacy", type=click.Choice(PRIVACY_LABELS), help="What the request's text is.")
@click.option("--policy", help="What makes one place better than another. [default: the fabric's]")
@click.option("--priority", type=click.Choice(PRIORITIES), help="Who goes first.")
@click.option("--deadline-s", type=click.FloatRange(0, min_open=True), help="Seconds after which nobody wants it.")
@click.option("--max-cost-usd", type=click.FloatRange(0), help="US dollars that the answer may cost at worst.")
@json_option
def route(prompt: str, model: str | None, max_tokens: int | None, as_json: bool, **options: Any) -> None:
    """Show where a request would go, and why.

    Also why not elsewhere, when it would be done and what it would cost. Nothing runs and nothing is stored.
    PROMPT - reads stdin.
    """
    from fabric.client import Client

    params: dict[str, Any] = {} if max_tokens is None else {"max_tokens": max_tokens}
    if given := {name: value for name, value in options.items() if value is not None}:
        params["fabric"] = given
    with Client() as client:
        shown = client.route(sys.stdin.read() if prompt == "-" else prompt, model=model, **params)
    if as_json:
        print_json(shown)
        return
    chosen = shown["chosen"]
    click.echo(f"to {chosen['deployment']} ({chosen['tier']})" if chosen else "nowhere")
    show_decision(shown["decision"])
    if shown["error"]:
        click.echo(f"it would be answered with {shown['error']['status']}: {shown['error']['message']}")
