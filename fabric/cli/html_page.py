"""What pages that commands write are made of: one HTML file, charts inline, nothing loaded from anywhere. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

#: Of a chart, in its own units; the rims hold the words of its axes.
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 920, 260, 64, 28, 12

STYLE = """
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
.line{fill:none!important;stroke-width:2}.line.cpu{stroke:var(--cpu)}.line.gpu{stroke:var(--gpu)}
.line.cloud{stroke:var(--cloud)}.line.other{stroke:var(--other)}
h3{font-size:1rem;font-weight:500;margin:1.5rem 0 .25rem}.key svg.long{width:2em}
.key span{display:inline-block;margin-right:1.25rem}
.key svg{width:.8em;height:.8em;margin-right:.35em;vertical-align:-.05em}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.35rem .6rem;border-bottom:1px solid var(--line);text-align:right}
th{font-weight:500}th[scope=row],.name{text-align:left;overflow-wrap:anywhere}
thead th,summary{color:var(--soft)}
"""


def document(title: str, body: str) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{text(title)}</title>'
        f"<style>{STYLE}</style></head><body><main>{body}</main></body></html>\n"
    )


def section(title: str, inside: str) -> str:
    return f"<section><h2>{text(title)}</h2>{inside}</section>"


def axis(highest: float, scale: float, ground: int, shown: Callable[[float], str | None]) -> str:
    """Five lines from 0 up. ``scale``: of the chart's units for one; ``shown``: a value in words."""
    lines = []
    for quarter in range(5):
        value = highest * quarter / 4
        y = ground - value * scale
        lines.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{shown(value)}</text>'
        )
    return "".join(lines)


def html_table(headers: Sequence[str], rows: Sequence[tuple[Sequence[str], Sequence[str | None]]]) -> str:
    names_wide = len(rows[0][0]) if rows else 1
    head = "".join(
        f'<th scope="col"{" class=name" if place < names_wide else ""}>{text(header)}</th>'
        for place, header in enumerate(headers)
    )
    body = "".join(
        "<tr>"
        + "".join(f'<th scope="row">{text(name)}</th>' for name in names)
        + "".join(f"<td>{text(value or '–')}</td>" for value in values)
        + "</tr>"
        for names, values in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def text(value: object) -> str:
    return escape(str(value))
