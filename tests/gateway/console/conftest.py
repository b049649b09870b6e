"""A real browser, on the gateway that the tests beside share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

PATIENCE_MS = 60_000


@dataclass
class Viewer:
    """A page, and all that went wrong on it."""

    page: Page
    problems: list[str] = field(default_factory=list)

    def goes(self, path: str) -> Page:
        self.page.goto(path, wait_until="load")
        return self.page


@pytest.fixture
def view(chromium: Browser) -> Iterator[Callable[..., Viewer]]:
    """Opens a browser window of its own on a gateway. At the end nothing may have gone wrong in any of them."""
    viewers: list[Viewer] = []
    with contextlib.ExitStack() as stack:

        def open_window(url: str, **options: Any) -> Viewer:
            context: BrowserContext = chromium.new_context(base_url=url, reduced_motion="reduce", **options)
            stack.callback(context.close)
            context.set_default_timeout(PATIENCE_MS)
            viewer = Viewer(context.new_page())
            _watch(viewer, url)
            viewers.append(viewer)
            return viewer

        yield open_window
        for viewer in viewers:
            assert viewer.problems == [], viewer.problems


def _watch(viewer: Viewer, url: str) -> None:
    page, problems = viewer.page, viewer.problems
    page.on("console", lambda said: problems.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda asked: None if asked.url.startswith(f"{url}/") else problems.append(asked.url))
    page.add_init_script(
        "document.addEventListener('securitypolicyviolation', e => console.error('CSP: ' + e.violatedDirective))"
    )


@pytest.fixture(scope="session")
def axe() -> str:
    return (Path(__file__).parent / "axe" / "axe.min.js").read_text("utf-8")
