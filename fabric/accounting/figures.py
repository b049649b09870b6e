"""Sums of the ledger as they are shown: usage, cost, what it is compared with. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from fabric.ledger.costs import SUMMED, Group, Row
from fabric.ledger.worker_hours import Machines


def usage_row(row: Row, group_by: Sequence[Group]) -> dict[str, Any]:
    """``cached_input_tokens`` are a part of ``input_tokens``, ``reasoning_tokens`` of ``output_tokens``.
    ``estimated``: attempts whose tokens no engine counted."""
    return {
        **names(row, group_by),
        "requests": row["requests"],
        "failed_requests": row["failures"],
        "attempts": row["attempts"],
        "input_tokens": row["input_tokens"],
        "cached_input_tokens": row["cached_input_tokens"],
        "output_tokens": row["output_tokens"],
        "reasoning_tokens": row["reasoning_tokens"],
        "estimated": row["estimated"],
        "engine_s": row["engine_s"],
        "cost_usd": row["cost_usd"],
        "cloud_equivalent_usd": row["cloud_equivalent_usd"],
    }


def cost_row(row: Row, group_by: Sequence[Group]) -> dict[str, Any]:
    """US dollars. ``savings_usd``: the cloud equivalent less the cost of the same requests; requests that can't be
    compared don't count in it. ``expected_usd`` and ``actual_of_expected_usd`` are of the same requests, and
    ``prediction_error`` is the mean of |expected - actual| over their mean actual cost."""
    cost, tokens = row["cost_usd"], row["input_tokens"] + row["output_tokens"]
    return {
        **names(row, group_by),
        "requests": row["requests"],
        "input_tokens": row["input_tokens"],
        "cached_input_tokens": row["cached_input_tokens"],
        "output_tokens": row["output_tokens"],
        "cost_usd": cost,
        "token_usd": max(0.0, cost - row["machine_usd"]),
        "machine_usd": row["machine_usd"],
        "cloud_equivalent_usd": row["cloud_equivalent_usd"],
        "savings_usd": row["cloud_equivalent_usd"] - row["compared_usd"],
        "baseline_usd": row["baseline_usd"],
        "savings_vs_baseline_usd": row["baseline_usd"] - cost if row["baseline_usd"] else 0.0,
        "cost_per_1000_requests_usd": _per(cost, row["requests"], 1e3),
        "cost_per_million_tokens_usd": _per(cost, tokens, 1e6),
        "expected_usd": row["expected_usd"],
        "actual_of_expected_usd": row["foreseen_usd"],
        "prediction_error": _per(row["missed_usd"], row["foreseen_usd"], 1),
    }


def tier_rows(rows: Iterable[Row], machines: Iterable[Machines] | None) -> list[dict[str, Any]]:
    """Rows by tier. ``machines``: what the hours of their workers cost, with the part that nothing ran in; ``None``
    where that isn't the caller's business."""
    by_tier = {row["tier"]: row for row in rows if row["tier"]}
    hours = {one.tier: one for one in machines or ()}
    shown = []
    for tier in sorted({*by_tier, *hours}):
        row = by_tier.get(tier, {"tier": tier, **dict.fromkeys(SUMMED, 0)})
        found = cost_row(row, ("tier",))
        if machines is not None:
            found["machines"] = _hours(hours.get(tier), row["machine_usd"])
        shown.append(found)
    return shown


def _hours(hours: Machines | None, busy_usd: float) -> dict[str, Any]:
    if hours is None:
        return {"workers": 0, "up_s": 0.0, "usd": busy_usd, "busy_usd": busy_usd, "idle_usd": 0.0}
    # A worker's last half minute may be missing in its hours.
    usd = max(hours.usd, busy_usd)
    return {"workers": hours.workers, "up_s": hours.up_s, "usd": usd, "busy_usd": busy_usd, "idle_usd": usd - busy_usd}


def names(row: Mapping[str, Any], group_by: Sequence[Group]) -> dict[str, Any]:
    return {name: _told(name, row[name]) for name in group_by}


def _told(name: Group, value: Any) -> Any:
    if name == "day":
        return f"{_utc(value):%Y-%m-%d}"
    if name == "hour":
        return f"{_utc(value):%Y-%m-%dT%H:00:00Z}"
    return value


def _utc(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)


def _per(usd: float, count: float, scale: float) -> float | None:
    return usd / count * scale if count else None
