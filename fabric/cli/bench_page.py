"""The page of ``fabric bench trend --html``: a chart a figure, a line for each deployment and concurrency. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

from fabric.bench.trend import Entry, Load
from fabric.cli.bench_trend import HEADERS, cells
from fabric.cli.html_page import BOTTOM, HEIGHT, LEFT, TOP, WIDTH, axis, document, html_table, section, text
from fabric.cli.spending import usd

Series = Mapping[Load, Sequence[Entry]]


def _number(value: float) -> str:
    return f"{value:.3g}"


def _seconds(value: float) -> str:
    return f"{value * 1000:.3g} ms" if value < 1 else f"{value:.3g} s"


#: Figure, the chart's title, and how its values are said.
_CHARTS: tuple[tuple[str, str, Callable[[float], str | None]], ...] = (
    ("first_token_p50_s", "First token, median", _seconds),
    ("first_token_p95_s", "First token, 95th percentile", _seconds),
    ("output_tokens_per_s", "Tokens a second", _number),
    ("usd_per_million_output_tokens", "US dollars per million tokens written", usd),
    ("error_rate", "Requests that failed", lambda value: f"{value:.1%}"),
)
#: Colours of the page, and dashes so that lines are told apart without colours, too.
_LINES = tuple((colour, dash) for dash in ("", "7 3", "2 3") for colour in ("cpu", "gpu", "cloud", "other"))
_MARK = 4


def page(series: Series, now: datetime | None = None) -> str:
    made = (now or datetime.now(UTC)).astimezone(UTC)
    runs = len({entry.date for entries in series.values() for entry in entries})
    body = [f"<h1>Benchmarks over time</h1><p>{runs:,} runs. Made {made:%Y-%m-%d %H:%M} UTC; dates are UTC.</p>"]
    for workload in sorted({load.workload for load in series}):
        of_it = {load: entries for load, entries in series.items() if load.workload == workload}
        body.append(section(f"Workload {workload}", _workload(of_it)))
    if not series:
        body.append("<p>No runs yet: <code>fabric bench run</code> makes one.</p>")
    return document("Benchmarks over time", "".join(body))


def _workload(series: Series) -> str:
    styles = {load: _LINES[place % len(_LINES)] for place, load in enumerate(sorted(series))}
    key = "".join(_key(f"{load.deployment}, {load.concurrency} at once", *styles[load]) for load in sorted(series))
    charts = [
        f"<h3>{text(title)}</h3>{_chart(series, figure, title, shown, styles)}" for figure, title, shown in _CHARTS
    ]
    tables = [
        f"<h3>{text(load.deployment)}, {load.concurrency} at once</h3>"
        + html_table(HEADERS, [((row[0] or "",), row[1:]) for row in cells(entries)])
        for load, entries in sorted(series.items())
    ]
    return f'<p class="key">{key}</p>{"".join(charts)}{"".join(tables)}'


def _chart(
    series: Series,
    figure: str,
    title: str,
    shown: Callable[[float], str | None],
    styles: Mapping[Load, tuple[str, str]],
) -> str:
    """A run is a step to the right, whatever the time between two: what is compared is one run with the next."""
    dates = sorted({entry.date for entries in series.values() for entry in entries})
    values = [v for entries in series.values() for e in entries if (v := e.figures[figure]) is not None]
    if not values:
        return "<p>No run could tell it.</p>"
    highest = max(values) or 1.0
    step = (WIDTH - LEFT) / len(dates)
    scale, ground = (HEIGHT - TOP - BOTTOM) / highest, HEIGHT - BOTTOM
    across = {date: LEFT + (place + 0.5) * step for place, date in enumerate(dates)}
    parts = [axis(highest, scale, ground, shown)]
    for load, entries in sorted(series.items()):
        colour, dash = styles[load]
        at = [(across[e.date], ground - v * scale, e, v) for e in entries if (v := e.figures[figure]) is not None]
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y, _, _ in at)
        parts.append(f'<polyline class="line {colour}"{dashes} points="{points}"/>')
        for x, y, entry, value in at:
            said = f"{entry.name or entry.date}: {load.deployment}, {load.concurrency} at once: {shown(value)}"
            parts.append(
                f'<circle class="{colour}" cx="{x:.1f}" cy="{y:.1f}" r="{_MARK}"><title>{text(said)}</title></circle>'
            )
    names = {entry.date: entry.name for entries in series.values() for entry in entries}
    for place, date in enumerate(dates):
        if place % max(1, -(-len(dates) // 8)) == 0:
            label = text(names[date][:14] or date[5:16].replace("T", " "))
            parts.append(f'<text x="{across[date]:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{label}</text>')
    said = f"{title} of {len(dates)} runs; the highest is {shown(highest)}. The tables below have the figures."
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{text(said)}">{"".join(parts)}</svg>'


def _key(name: str, colour: str, dash: str) -> str:
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    line = f'<line class="line {colour}"{dashes} x1="0" x2="24" y1="5" y2="5"/>'
    return f'<span><svg class="long" viewBox="0 0 24 10">{line}</svg>{text(name)}</span>'
