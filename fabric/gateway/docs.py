"""``/docs``: the API on one page, made from its OpenAPI description. No script, nothing fetched: it works offline."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

import orjson

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24 }
h2 { margin-top: 2.5rem; text-transform: capitalize; border-bottom: 1px solid #d0d7de }
details { margin: .4rem 0 } summary { cursor: pointer }
code, pre { font: 14px/1.45 ui-monospace, monospace } pre { background: #f6f8fa; padding: .8rem; overflow-x: auto }
.method { display: inline-block; width: 4.5rem; font-weight: 600 } .told { color: #57606a; margin-left: .6rem }
@media (prefers-color-scheme: dark) { body { background: #0d1117; color: #e6edf3 } pre { background: #161b22 } }
"""


def page(description: dict[str, Any]) -> str:
    info = description["info"]
    sections = "".join(f"<h2>{escape(tag)}</h2>{''.join(parts)}" for tag, parts in _by_tag(description).items())
    schemas = "".join(
        f"<details id='{escape(name)}'><summary><code>{escape(name)}</code></summary>{_json(schema)}</details>"
        for name, schema in sorted(description["components"]["schemas"].items())
    )
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{escape(info['title'])}</title>"
        f"<meta name='viewport' content='width=device-width'><style>{_STYLE}</style></head><body>"
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info['description'])}</p>"
        f"<p><a href='/openapi.json'>openapi.json</a></p>{sections}<h2>Schemas</h2>{schemas}</body></html>"
    )


def _by_tag(description: dict[str, Any]) -> dict[str, list[str]]:
    tags: dict[str, list[str]] = {}
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            for tag in operation.get("tags", ["other"]):
                tags.setdefault(tag, []).append("".join(_operation(path, method, operation)))
    return tags


def _operation(path: str, method: str, operation: dict[str, Any]) -> Iterator[str]:
    yield f"<details><summary><code><span class='method'>{method.upper()}</span>{escape(path)}</code>"
    yield f"<span class='told'>{escape(operation.get('summary', ''))}</span></summary>"
    if told := operation.get("description"):
        yield f"<p>{escape(told)}</p>"
    if parameters := operation.get("parameters"):
        yield "<ul>"
        for parameter in parameters:
            where, needed = parameter["in"], " (required)" if parameter.get("required") else ""
            text = escape(parameter.get("description", ""))
            yield f"<li><code>{escape(parameter['name'])}</code> in {where}{needed}: {text}</li>"
        yield "</ul>"
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        name = content["schema"]["$ref"].rsplit("/", 1)[-1]
        yield f"<p>Takes <code>{escape(kind)}</code>: <a href='#{escape(name)}'>{escape(name)}</a></p>"
    for status, answer in operation["responses"].items():
        kinds = " ".join(answer.get("content", {}))
        yield f"<p><code>{escape(status)}</code> {escape(answer['description'])} <code>{escape(kinds)}</code></p>"
    yield "</details>"


def _json(value: Any) -> str:
    return f"<pre>{escape(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())}</pre>"
