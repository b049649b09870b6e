"""The page of ``fabric costs report``: one HTML file, charts inline, nothing loaded from anywhere. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from html import escape
from typing import Any

from fabric.cli.spending import usd

Row = Mapping[str, Any]

_TIERS = ("cpu", "gpu", "cloud")
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 920, 260, 64, 28, 12
#: Rows of a table: the rest is one row more.
_ROWS = 20
#: Days of a chart; of longer times the last ones.
_DAYS = 92

_STYLE = """
:root{color-scheme:light dark;--ink:#1c2330;--soft:#5a6577;--line:#d7dce4;--ground:#fff;--card:#f5f7fa;
--cpu:#2f7d5b;--gpu:#7a5ea8;--cloud:#c26a1b;--other:#1f5fa8}
@media (prefers-color-scheme:dark){:root{--ink:#e6e9ef;--soft:#a2adbd;--line:#3a4353;--ground:#14181f;--card:#1d232d;
--cpu:#5fbf94;--gpu:#b39ae0;--cloud:#f0a35c;--other:#74aef0}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:980px;padding:2rem 1.25rem;background:var(--ground);color:var(--ink);
font:16px/1.5 system-ui,sans-serif}
h1{font-size:1.6rem;margin:0}h2{font-size:1.15rem;margin:2.5rem 0 .5rem}p{color:var(--soft);margin:.25rem 0}
dl{display:grid;grid-template-columns:repeat(auto-fit,minmax(11rem,1fr));gap:.75rem;margin:1.5rem 0}
dl div{background:var(--card);border-radius:.5rem;padding:.75rem 1rem}dt{color:var(--soft);font-size:.85rem}
dd{margin:0;font-size:1.35rem;font-variant-numeric:tabular-nums}
svg{width:100%;height:auto}svg text{fill:var(--soft);font-size:12px}
.cpu{fill:var(--cpu)}.gpu{fill:var(--gpu)}.cloud{fill:var(--cloud)}.other{fill:var(--other)}
.grid{stroke:var(--line)}.list{fill:none;stroke:var(--other);stroke-width:2}
.key span{margin-right:1.25rem}.key svg{width:.8em;height:.8em;margin-right:.35em;vertical-align:-.05em}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.35rem .6rem;border-bottom:1px solid var(--line);text-align:right}
th{font-weight:500}th[scope=row],.name{text-align:left;overflow-wrap:anywhere}
thead th,summary{color:var(--soft)}
"""


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
        _section("By day", _daily_chart(figures.days) + _daily_table(figures.days)),
        _section("By tier", _tier_table(figures.summary["tiers"])),
        _section("By model and deployment", _table(("Model", "Deployment"), ("model", "deployment"), figures.models)),
    ]
    if len(figures.tenants) > 1:
        body.append(_section("By tenant", _table(("Tenant",), ("tenant",), figures.tenants)))
    if figures.tags:
        note = "<p>A request counts once for each of its tags.</p>"
        body.append(_section("By tag", note + _table(("Tag",), ("tag",), figures.tags)))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>Inference costs</title>'
        f"<style>{_STYLE}</style></head><body><main>{''.join(body)}</main></body></html>\n"
    )


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
    boxes = (f"<div><dt>{_text(name)}</dt><dd>{_text(value or '–')}</dd></div>" for name, value in shown)
    return f"<dl>{''.join(boxes)}</dl>"


def _section(title: str, inside: str) -> str:
    return f"<section><h2>{_text(title)}</h2>{inside}</section>"


def _daily_chart(rows: Sequence[Row]) -> str:
    """Stacked bars of cost by tier, and the cloud equivalent as a line."""
    if not rows:
        return "<p>Nothing ran in this time.</p>"
    days = _all_days(rows)
    cost = {(row["day"], row["tier"] or "other"): row["cost_usd"] for row in rows}
    elsewhere = {day: sum(r["cloud_equivalent_usd"] for r in rows if r["day"] == day) for day in days}
    tiers = [tier for tier in (*_TIERS, "other") if any(cost.get((day, tier)) for day in days)]
    highest = max(max(sum(cost.get((day, tier), 0.0) for tier in tiers), elsewhere[day]) for day in days) or 1.0
    step = (_WIDTH - _LEFT) / len(days)
    scale = (_HEIGHT - _TOP - _BOTTOM) / highest
    ground = _HEIGHT - _BOTTOM
    parts = [_axis(highest, scale, ground)]
    for place, day in enumerate(days):
        left, top = _LEFT + place * step + step * 0.12, float(ground)
        for tier in tiers:
            height = cost.get((day, tier), 0.0) * scale
            top -= height
            if height:
                said = f"{day}, {tier}: ${usd(cost[day, tier])}"
                parts.append(
                    f'<rect class="{tier}" x="{left:.1f}" y="{top:.1f}" width="{step * 0.76:.1f}" '
                    f'height="{height:.1f}"><title>{_text(said)}</title></rect>'
                )
        if place % max(1, -(-len(days) // 10)) == 0:
            parts.append(f'<text x="{left:.1f}" y="{_HEIGHT - 8}">{day[5:]}</text>')
    if any(elsewhere.values()):
        points = " ".join(
            f"{_LEFT + (place + 0.5) * step:.1f},{ground - elsewhere[day] * scale:.1f}"
            for place, day in enumerate(days)
        )
        parts.append(f'<polyline class="list" points="{points}"/>')
    label = (
        f"Cost of each of {len(days)} days by tier; the highest is ${usd(highest)}. The table below has the figures."
    )
    key = "".join(_key(tier, tier) for tier in tiers) + (
        _key("other", "the same in the cloud (line)") if any(elsewhere.values()) else ""
    )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{_text(label)}">{"".join(parts)}</svg>'
        f'<p class="key" aria-hidden="true">{key}</p>'
    )


def _axis(highest: float, scale: float, ground: int) -> str:
    lines = []
    for quarter in range(5):
        value = highest * quarter / 4
        y = ground - value * scale
        lines.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{usd(value)}</text>'
        )
    return "".join(lines)


def _key(kind: str, name: str) -> str:
    square = f'<svg viewBox="0 0 10 10"><rect class="{kind}" width="10" height="10"/></svg>'
    return f"<span>{square}{_text(name)}</span>"


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
    table = _html_table(("Day", "Requests", "Cost", "In the cloud", "Saved"), [((day,), row) for day, row in cells])
    return f"<details><summary>As a table</summary>{table}</details>"


def _tier_table(tiers: Sequence[Row]) -> str:
    headers = ("Tier", "Requests", "Cost", "In the cloud", "Saved", "Per million tokens", "Machine hours", "Idle")
    rows = []
    for tier in tiers:
        hours = tier.get("machines")
        machine = [f"{hours['up_s'] / 3600:,.1f}", usd(hours["idle_usd"])] if hours else [None, None]
        rows.append(((tier["tier"],), [*_amounts(tier), *machine]))
    return _html_table(headers, rows)


def _table(titles: Sequence[str], names: Sequence[str], rows: Sequence[Row]) -> str:
    ordered = sorted(rows, key=lambda row: (-row["cost_usd"], -row["requests"]))
    shown = [([row[name] or "–" for name in names], _amounts(row)) for row in ordered[:_ROWS]]
    rest = ordered[_ROWS:]
    table = _html_table((*titles, "Requests", "Cost", "In the cloud", "Saved", "Per million tokens"), shown)
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


def _html_table(headers: Sequence[str], rows: Sequence[tuple[Sequence[str], Sequence[str | None]]]) -> str:
    names_wide = len(rows[0][0]) if rows else 1
    head = "".join(
        f'<th scope="col"{" class=name" if place < names_wide else ""}>{_text(header)}</th>'
        for place, header in enumerate(headers)
    )
    body = "".join(
        "<tr>"
        + "".join(f'<th scope="row">{_text(name)}</th>' for name in names)
        + "".join(f"<td>{_text(value or '–')}</td>" for value in values)
        + "</tr>"
        for names, values in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _text(value: object) -> str:
    return escape(str(value))
