"""``fabric webhooks``: which events reached whom."""

from __future__ import annotations

import click

from fabric.cli.output import json_option, local_time, print_json, print_table


@click.group()
def webhooks() -> None:
    """Show deliveries of webhooks, and send events again."""


@webhooks.command("ls")
@click.option("--state", type=click.Choice(["waiting", "delivered", "parked"]), help="Only those.")
@click.option("--webhook", help="Only this webhook's.")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="Most deliveries to list.")
@json_option
def list_deliveries(state: str | None, webhook: str | None, limit: int, as_json: bool) -> None:
    """List deliveries, newest first."""
    from fabric.client import Client

    with Client() as client:
        found = list(client.webhook_deliveries(limit=limit, state=state, webhook=webhook))
    if as_json:
        print_json(found)
        return
    print_table(
        ("DELIVERY", "EVENT", "OF", "STATE", "TRIES", "SINCE", "LAST"),
        [
            (
                *(one["id"], one["type"], one["subject"], one["state"], one["tries"]),
                *(local_time(one["created_ms"] / 1000), one["last_error"] or one["last_status"]),
            )
            for one in found
        ],
    )


@webhooks.command()
@click.argument("delivery_ids", metavar="DELIVERY...", nargs=-1, required=True)
def replay(delivery_ids: tuple[str, ...]) -> None:
    """Send events again, whether they arrived or not. They keep their ids."""
    from fabric.client import Client

    with Client() as client:
        for delivery_id in delivery_ids:
            click.echo(f"{client.replay_webhook(delivery_id)['id']} waits to be sent")
