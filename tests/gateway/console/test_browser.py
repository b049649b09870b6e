"""The console in Chromium: pages load whole, numbers move, forms work, and nothing goes wrong meanwhile."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.gateway.conftest import Served, Worker
    from tests.gateway.console.conftest import Viewer

View = Callable[..., Viewer] if TYPE_CHECKING else Any

PAGES = ("", "/jobs", "/batches", "/dead-letters", "/costs", "/policy")
CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "small", "messages": [{"role": "user", "content": "hi"}]}
#: Where pictures of the pages are kept, for people to look at; nowhere unless asked for.
PICTURES = os.environ.get("FABRIC_TEST_PICTURES")


def violations(viewer: Viewer, axe: str) -> list[Any]:
    """What axe-core calls serious or critical."""
    viewer.page.evaluate(axe)
    found = viewer.page.evaluate("async () => (await axe.run(document)).violations")
    return [
        (one["id"], [node["html"][:120] for node in one["nodes"]])
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


def submit(gateway: Served, **fabric: Any) -> str:
    with gateway.http() as http:
        asked = {"endpoint": CHAT, "body": BODY, "fabric": fabric}
        job_id: str = http.post("/v1/jobs", json=asked).json()["id"]
    return job_id


def picture(viewer: Viewer, name: str) -> None:
    if PICTURES:
        viewer.page.screenshot(path=Path(PICTURES) / f"{name}.png", full_page=True)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_loads_for_everybody(by_hand: Worker, gateway: Served, view: View, axe: str, scheme: str) -> None:
    parked, running = submit(gateway, tags=["night"]), ""
    by_hand.next().park()
    running = submit(gateway, tags=["day", "report"])
    job = by_hand.next()
    viewer = view(gateway.url, color_scheme=scheme)
    for path in (*PAGES, f"/jobs/{parked}", f"/jobs/{running}"):
        page = viewer.goes(f"/console{path}")
        assert page.locator("h1").inner_text()
        assert violations(viewer, axe) == []
        picture(
            viewer, f"{path.strip('/').split('/')[0] or 'overview'}{'-one' if path.count('/') > 1 else ''}-{scheme}"
        )
    job.succeed()


def test_narrow_screens_scroll_only_inside_of_tables(worker: Worker, gateway: Served, view: View) -> None:
    job_id = submit(gateway)
    viewer = view(gateway.url, viewport={"width": 375, "height": 720})
    for path in (*PAGES, f"/jobs/{job_id}"):
        page = viewer.goes(f"/console{path}")
        assert page.evaluate("document.documentElement.scrollWidth") <= 375, path
        picture(viewer, f"narrow-{path.strip('/').split('/')[0] or 'overview'}{'-one' if path.count('/') > 1 else ''}")


def test_numbers_move_while_one_looks(by_hand: Worker, gateway: Served, view: View) -> None:
    viewer = view(gateway.url)
    page = viewer.goes("/console")
    waiting = page.locator(".figure", has_text="Waiting")
    assert waiting.locator("dd").inner_text().startswith("0")
    by_hand.beating = False
    job_id = submit(gateway)
    job = by_hand.next()
    running = page.locator(".figure", has_text="Running").locator("dd")
    page.wait_for_function(
        "() => /^1/.test([...document.querySelectorAll('.figure')][1].querySelector('dd').innerText)"
    )
    assert running.inner_text().startswith("1")
    job.park()
    page.wait_for_function(
        "() => /^1/.test([...document.querySelectorAll('.figure')][2].querySelector('dd').innerText)"
    )
    page.locator("nav a", has_text="Dead letters").click()
    page.wait_for_url(re.compile("/console/dead-letters$"))
    assert job_id in page.content()


def test_a_page_is_live_however_late_its_scripts_come(worker: Worker, gateway: Served, view: View) -> None:
    viewer = view(gateway.url)
    page = viewer.page
    held: list[Any] = []
    page.route("**/hx-sse.min.js", lambda route: held.append(route))
    page.goto("/console", wait_until="commit")
    page.wait_for_function("() => window.htmx")
    # Timers come in order: those that htmx has set by now are over.
    page.evaluate("() => new Promise((over) => setTimeout(() => setTimeout(over)))")
    with page.expect_response("**/console/live"):
        held[0].continue_()


def test_a_page_says_that_its_stream_is_away_and_comes_back(by_hand: Worker, gateway: Served, chromium: Any) -> None:
    """The first look fails in both ways that it can, and what the page showed stays."""
    context = chromium.new_context(base_url=gateway.url)
    page = context.new_page()
    answers = [lambda route: route.abort(), lambda route: route.fulfill(status=503, body="away")]
    page.route("**/console/live", lambda route: answers.pop(0)(route) if answers else route.continue_())
    page.goto("/console")
    page.wait_for_selector("#away:visible")
    with page.expect_response(lambda answer: answer.url.endswith("/console/live") and answer.status == 200):
        assert "Tiers side by side" in page.inner_text("#live")
    page.wait_for_selector("#away", state="hidden")
    by_hand.beating = False
    submit(gateway)
    job = by_hand.next()
    page.wait_for_function("() => /^1/.test(document.querySelectorAll('.figure dd')[1].innerText)")
    job.succeed()
    context.close()


def test_a_job_is_followed_to_its_end(by_hand: Worker, gateway: Served, view: View) -> None:
    job_id = submit(gateway)
    job = by_hand.next()
    viewer = view(gateway.url)
    page = viewer.goes(f"/console/jobs/{job_id}")
    assert page.locator(".lead .state").inner_text().strip() == "running"
    job.succeed()
    page.wait_for_selector(".lead .state.succeeded")
    assert "ran at small-cpu" in page.locator(".story").inner_text()


def test_dead_letters_are_replayed_and_dropped(
    by_hand: Worker, gateway: Served, view: View, state: Callable[[str], Any], eventually: Any
) -> None:
    first, second = submit(gateway), submit(gateway)
    for _ in range(2):
        by_hand.next().park()
    viewer = view(gateway.url)
    page = viewer.goes("/console/dead-letters")
    page.get_by_label(f"Select {first}").check()
    page.get_by_role("button", name="Replay the selected").click()
    page.wait_for_selector(".notice")
    by_hand.next().succeed()
    eventually(lambda: state(first) == "succeeded")
    page.get_by_label("Select all").check()
    page.get_by_role("button", name="Drop the selected").click()
    page.get_by_role("button", name="Drop them").click()
    page.wait_for_selector(".notice")
    assert state(second) is None
    assert page.get_by_text("Nothing is parked.").count() == 1


def test_a_request_is_tried_with_the_keyboard_alone(
    worker: Worker, gateway: Served, view: View, eventually: Any
) -> None:
    eventually(lambda: gateway.metric("fabric_worker_slots"))
    viewer = view(gateway.url)
    page = viewer.goes("/console/policy")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.get_by_label("Label", exact=True).select_option("restricted")
    page.get_by_label("Prompt, tokens").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#tried .lead")
    assert "small-cpu" in page.locator("#tried .lead").inner_text()
    assert page.url.endswith("/console/policy")


def test_the_search_answers_in_place(worker: Worker, gateway: Served, view: View) -> None:
    job_id = submit(gateway, tags=["red"])
    with gateway.http() as http:
        http.get(f"/v1/jobs/{job_id}/events")
    viewer = view(gateway.url)
    page = viewer.goes("/console/jobs")
    assert job_id in page.locator("#found").inner_text()
    page.get_by_label("State").select_option("failed")
    page.wait_for_selector("#found .empty")
    page.get_by_label("State").select_option("succeeded")
    page.wait_for_selector("#found table")
    page.get_by_label("Id").fill(job_id)
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(job_id))
