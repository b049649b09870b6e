"""A decision for people: the plan in its order, and why the others are out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from fabric.cli.output import print_table


def show_decision(decision: Mapping[str, Any]) -> None:
    """``decision``: as the API shows it."""
    rule = f", by {decision['rule']!r}" if decision.get("rule") else ""
    click.echo(f"policy {decision['policy']}{rule} (rules {decision['policy_hash']})")
    if plan := decision["plan"]:
        print_table(
            ("ORDER", "DEPLOYMENT", "TIER", "SCORE", "COST", "STARTS", "FIRST TOKEN", "DONE", "KNOWN FROM"),
            [
                (
                    order,
                    place["deployment"],
                    place["tier"],
                    f"{place['score']:.4g}",
                    f"${place['expected_cost_usd']:.6f}",
                    _seconds(place.get("expected_wait_s")),
                    _seconds(place.get("expected_first_token_s")),
                    _seconds(place.get("expected_finish_s")),
                    _known(place),
                )
                for order, place in enumerate(plan, 1)
            ],
        )
    for out in decision["eliminated"]:
        click.echo(f"not {out['deployment']}: {out['reason']} ({out['detail']})")


def _seconds(value: float | None) -> str | None:
    return None if value is None else f"{value:.2f} s"


def _known(place: Mapping[str, Any]) -> str:
    if not place.get("live", True):
        return "no live worker"
    return "measured" if place.get("measured") else "the tier's usual"
