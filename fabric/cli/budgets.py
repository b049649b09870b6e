"""``fabric budgets``."""

from __future__ import annotations

from typing import Any

import click

from fabric.cli.output import json_option, local_time, print_json, print_table


@click.command()
@json_option
def budgets(as_json: bool) -> None:
    """Show budgets, and what is left of them.

    RESERVED is what jobs that haven't ended may cost at worst.
    """
    from fabric.client import Client

    with Client() as client:
        found = client.budgets()
    if as_json:
        print_json(found)
        return
    headers = ("BUDGET", "FOR", "WINDOW", "LIMIT", "SPENT", "RESERVED", "LEFT", "BEGINS AGAIN", "HARD")
    print_table(headers, [_cells(budget) for budget in found])


def _cells(budget: dict[str, Any]) -> list[object]:
    owner = next((f"{kind} {budget[kind]}" for kind in ("tenant", "key", "tag") if budget[kind]), "all")
    end = budget["window_end_ms"]
    unit = budget["unit"]
    money = [_amount(budget[f"{name}_{unit}"], unit) for name in ("limit", "spent", "reserved", "left")]
    again = None if end is None else local_time(end / 1000)
    return [budget["name"], owner, budget["window"], *money, again, "yes" if budget["hard"] else "no"]


def _amount(amount: float, unit: str) -> str:
    return f"{amount:,} tokens" if unit == "tokens" else f"${amount:.4f}"
