"""What a batch took: lines, tokens, time and money, from its usage rows."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import Connection, Select, func, select

from fabric.ledger.tables import usage

_PLACE = (usage.c.tier, usage.c.deployment)


def batch_report(connection: Connection, batch_id: str) -> dict[str, Any]:
    """
    ``places``: per tier and deployment. ``seconds``: what a line took in its engine (median, 95th
    percentile); ``None`` before the first answer. ``tokens_per_s``: output tokens over the time from
    the first dispatch to the last end.
    """
    rows = connection.execute(_sums(batch_id)).mappings().all()
    places = [
        {
            "tier": row["tier"],
            "deployment": row["deployment"],
            "lines": row["lines"],
            "input_tokens": row["input_tokens"],
            "output_tokens": row["output_tokens"],
            "cost_usd": row["cost_usd"],
        }
        for row in rows
    ]
    began = min((row["began"] for row in rows if row["began"]), default=None)
    ended = max((row["ended"] for row in rows), default=None)
    elapsed_s = (ended - began) / 1000 if began is not None and ended is not None else None
    written = sum(place["output_tokens"] for place in places)
    return {
        "object": "batch.report",
        "batch_id": batch_id,
        "places": places,
        "input_tokens": sum(place["input_tokens"] for place in places),
        "output_tokens": written,
        "cost_usd": sum(place["cost_usd"] for place in places),
        "seconds": {"p50": _percentile(connection, batch_id, 0.5), "p95": _percentile(connection, batch_id, 0.95)},
        "elapsed_s": elapsed_s,
        "tokens_per_s": written / elapsed_s if elapsed_s else None,
    }


def batch_costs(connection: Connection, batch_ids: Collection[str]) -> dict[str, float]:
    """Batch -> US dollars so far, of those that have taken something."""
    query = (
        select(usage.c.batch_id, func.sum(usage.c.cost_usd).label("cost_usd"))
        .where(usage.c.batch_id.in_(batch_ids))
        .group_by(usage.c.batch_id)
    )
    return {row.batch_id: row.cost_usd for row in connection.execute(query)}


def _sums(batch_id: str) -> Select[Any]:
    return (
        select(
            *_PLACE,
            func.sum(usage.c.requests).label("lines"),
            func.sum(usage.c.input_tokens).label("input_tokens"),
            func.sum(usage.c.output_tokens).label("output_tokens"),
            func.sum(usage.c.cost_usd).label("cost_usd"),
            func.min(usage.c.dispatched_ms).label("began"),
            func.max(usage.c.finished_ms).label("ended"),
        )
        .where(usage.c.batch_id == batch_id)
        .group_by(*_PLACE)
        .order_by(*_PLACE)
    )


def _percentile(connection: Connection, batch_id: str, share: float) -> float | None:
    """The nearest-rank percentile of the lines that have an answer."""
    of_batch = (usage.c.batch_id == batch_id, usage.c.state == "succeeded")
    count = connection.execute(select(func.count()).where(*of_batch)).scalar_one()
    rank = max(0, -int(-count * share // 1) - 1)
    query = select(usage.c.engine_s).where(*of_batch).order_by(usage.c.engine_s).limit(1).offset(rank)
    return connection.execute(query).scalar()
