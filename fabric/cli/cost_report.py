"""The page of ``fabric costs report``: one HTML file, charts inline, nothing loaded from anywhere. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

from fabric.cli.html_page import BOTTOM, HEIGHT, LEFT, TOP, WIDTH, axis, document, html_table, section, text
from fabric.cli.spending import usd

Row = Mapping[str, Any]

_TIERS = ("cpu", "gpu", "cloud")
#: Rows of a table: the rest is one row more.
_ROWS = 20
#: Days of a chart; of longer times the last ones.
_DAYS = 92


@dataclass(frozen=True, slots=True)
class Figures:
    """Rows of ``GET /v1/costs`` by what their names say, and its summary."""

    summary: Mapping[str, Any]
    days: Sequence[Row]  #: by day and tier
    models: Sequence[Row]  #: by model and deployment
    tenants: Sequence[Row]
    tags: Sequence[Row]


def page(figures: Figures, now: datetime | None = None) -> str:
    made = (now or datetime.now(UTC)).astimezone(UTC)
    body = [
        f"<h1>Inference costs</h1><p>{_span(figures.summary)}, in US dollars; days are UTC. "
        f"Made {made:%Y-%m-%d %H:%M} UTC.</p>",
        _headline(figures.summary),
        section("By day", _daily_chart(figures.days) + _daily_table(figures.days)),
        section("By tier", _tier_table(figures.summary["tiers"])),
        section("By model and deployment", _table(("Model", "Deployment"), ("model", "deployment"), figures.models)),
    ]
    if len(figures.tenants) > 1:
        body.append(section("By tenant", _table(("Tenant",), ("tenant",), figures.tenants)))
    if figures.tags:
        note = "<p>A request counts once for each of its tags.</p>"
        body.append(section("By tag", note + _table(("Tag",), ("tag",), figures.tags)))
    return document("Inference costs", "".join(body))


def _span(summary: Mapping[str, Any]) -> str:
    since, until = (
        str(time)[:16].replace("T", " ") if (time := summary[name]) else None for name in ("since", "until")
    )
    return f"From {since or 'the beginning'} to {until or 'now'}"


def _headline(summary: Mapping[str, Any]) -> str:
    total, month, baseline = summary["total"], summary["month"], summary["baseline"]
    shown: list[tuple[str, str | None]] = [
        ("Cost", usd(total["cost_usd"])),
        ("The same in the cloud", usd(total["cloud_equivalent_usd"]) if total["cloud_equivalent_usd"] else None),
        ("Saved", usd(total["savings_usd"]) if total["cloud_equivalent_usd"] else None),
        ("Requests", f"{total['requests']:,}"),
        ("Per 1,000 requests", usd(total["cost_per_1000_requests_usd"])),
        ("Per million tokens", usd(total["cost_per_million_tokens_usd"])),
        (f"{month['month']}, by its end", usd(month["forecast_usd"])),
    ]
    if baseline:
        shown.append((f"Saved against {baseline['model']}", usd(total["savings_vs_baseline_usd"])))
    if total["prediction_error"] is not None:
        shown.append(("Mean error of expected costs", f"{total['prediction_error']:.0%}"))
    boxes = (f"<div><dt>{text(name)}</dt><dd>{text(value or '–')}</dd></div>" for name, value in shown)
    return f"<dl>{''.join(boxes)}</dl>"


def _daily_chart(rows: Sequence[Row]) -> str:
    """Stacked bars of cost by tier, and the cloud equivalent as a line."""
    if not rows:
        return "<p>Nothing ran in this time.</p>"
    days = _all_days(rows)
    cost = {(row["day"], row["tier"] or "other"): row["cost_usd"] for row in rows}
    elsewhere = {day: sum(r["cloud_equivalent_usd"] for r in rows if r["day"] == day) for day in days}
    tiers = [tier for tier in (*_TIERS, "other") if any(cost.get((day, tier)) for day in days)]
    highest = max(max(sum(cost.get((day, tier), 0.0) for tier in tiers), elsewhere[day]) for day in days) or 1.0
    step = (WIDTH - LEFT) / len(days)
    scale = (HEIGHT - TOP - BOTTOM) / highest
    ground = HEIGHT - BOTTOM
    parts = [axis(highest, scale, ground, usd)]
    for place, day in enumerate(days):
        left, top = LEFT + place * step + step * 0.12, float(ground)
        for tier in tiers:
            height = cost.get((day, tier), 0.0) * scale
            top -= height
            if height:
                said = f"{day}, {tier}: ${usd(cost[day, tier])}"
                parts.append(
                    f'<rect class="{tier}" x="{left:.1f}" y="{top:.1f}" width="{step * 0.76:.1f}" '
                    f'height="{height:.1f}"><title>{text(said)}</title></rect>'
                )
        if place % max(1, -(-len(days) // 10)) == 0:
            parts.append(f'<text x="{left:.1f}" y="{HEIGHT - 8}">{day[5:]}</text>')
    if any(elsewhere.values()):
        points = " ".join(
            f"{LEFT + (place + 0.5) * step:.1f},{ground - elsewhere[day] * scale:.1f}" for place, day in enumerate(days)
        )
        parts.append(f'<polyline class="list" points="{points}"/>')
    label = (
        f"Cost of each of {len(days)} days by tier; the highest is ${usd(highest)}. The table below has the figures."
    )
    key = "".join(_key(tier, tier) for tier in tiers) + (
        _key("other", "the same in the cloud (line)") if any(elsewhere.values()) else ""
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{text(label)}">{"".join(parts)}</svg>'
        f'<p class="key" aria-hidden="true">{key}</p>'
    )


def _key(kind: str, name: str) -> str:
    square = f'<svg viewBox="0 0 10 10"><rect class="{kind}" width="10" height="10"/></svg>'
    return f"<span>{square}{text(name)}</span>"


def _all_days(rows: Sequence[Row]) -> list[str]:
    """From the first to the last, the empty ones, too."""
    first, last = (date.fromisoformat(edge(row["day"] for row in rows)) for edge in (min, max))
    first = max(first, last - timedelta(days=_DAYS - 1))
    return [f"{first + timedelta(days=n)}" for n in range((last - first).days + 1)]


def _daily_table(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    days: dict[str, dict[str, Any]] = {}
    for row in rows:
        day = days.setdefault(
            row["day"], dict.fromkeys(("requests", "cost_usd", "cloud_equivalent_usd", "savings_usd"), 0)
        )
        for name in day:
            day[name] += row[name]
    cells = [
        (day, [f"{v['requests']:,}", usd(v["cost_usd"]), usd(v["cloud_equivalent_usd"]), usd(v["savings_usd"])])
        for day, v in sorted(days.items(), reverse=True)
    ]
    table = html_table(("Day", "Requests", "Cost", "In the cloud", "Saved"), [((day,), row) for day, row in cells])
    return f"<details><summary>As a table</summary>{table}</details>"


def _tier_table(tiers: Sequence[Row]) -> str:
    headers = ("Tier", "Requests", "Cost", "In the cloud", "Saved", "Per million tokens", "Machine hours", "Idle")
    rows = []
    for tier in tiers:
        hours = tier.get("machines")
        machine = [f"{hours['up_s'] / 3600:,.1f}", usd(hours["idle_usd"])] if hours else [None, None]
        rows.append(((tier["tier"],), [*_amounts(tier), *machine]))
    return html_table(headers, rows)


def _table(titles: Sequence[str], names: Sequence[str], rows: Sequence[Row]) -> str:
    ordered = sorted(rows, key=lambda row: (-row["cost_usd"], -row["requests"]))
    shown = [([row[name] or "–" for name in names], _amounts(row)) for row in ordered[:_ROWS]]
    rest = ordered[_ROWS:]
    table = html_table((*titles, "Requests", "Cost", "In the cloud", "Saved", "Per million tokens"), shown)
    more = f"<p>And {len(rest):,} more with ${usd(sum(r['cost_usd'] for r in rest))}.</p>" if rest else ""
    return table + more


def _amounts(row: Row) -> list[str | None]:
    cloud = row["cloud_equivalent_usd"]
    return [
        f"{row['requests']:,}",
        usd(row["cost_usd"]),
        usd(cloud) if cloud else None,
        usd(row["savings_usd"]) if cloud else None,
        usd(row["cost_per_million_tokens_usd"]),
    ]
