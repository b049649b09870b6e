"""Once there are keys: who may look, at what, and for how long."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from fabric.contracts.key import Scope
from fabric.gateway.console.session import COOKIE
from fabric.ledger import keys
from fabric.ledger.keys import NewKey

if TYPE_CHECKING:
    from fabric.gateway import GatewaySettings
    from tests.gateway.conftest import Served, Worker

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "small", "messages": [{"role": "user", "content": "hi"}]}
OWN = {"sec-fetch-site": "same-origin"}
View = Callable[..., Any]


def new_key(gateway: Served, tenant: str, *scopes: Scope, expires_ms: int | None = None) -> tuple[str, str]:
    """Its id, and the key."""
    new = NewKey(tenant, scopes, time.time_ns() // 1_000_000, "cli", expires_ms=expires_ms)
    row, key = gateway.ledger.write(keys.create, gateway.settings.secrets, new)
    return row.id, key


@pytest.fixture
def locked(settings: GatewaySettings, serve: Callable[..., Served]) -> tuple[Served, str, str]:
    """A gateway with keys; an admin's id and key. It has heard of them."""
    gateway = serve(settings)
    key_id, key = new_key(gateway, "acme", "admin")
    with gateway.http(headers={"authorization": f"Bearer {key}"}) as http:
        until = time.monotonic() + 60
        while httpx.get(f"{gateway.url}/v1/models", trust_env=False).status_code != 401:
            assert time.monotonic() < until
        assert http.get("/v1/models").status_code == 200
    return gateway, key_id, key


@pytest.fixture
def browser(locked: tuple[Served, str, str]) -> Iterator[httpx.Client]:
    """A client with a jar for cookies."""
    with httpx.Client(base_url=locked[0].url, timeout=60, trust_env=False, follow_redirects=True) as client:
        yield client


def log_in(client: httpx.Client, key: str, back: str = "") -> httpx.Response:
    return client.post("/console/login", data={"key": key, "next": back}, headers=OWN)


def test_who_has_no_session_is_led_to_the_login_and_back(
    browser: httpx.Client, locked: tuple[Served, str, str]
) -> None:
    answer = browser.get("/console/jobs?tier=cpu")
    assert answer.url.path == "/console/login" and answer.url.params["next"] == "/console/jobs?tier=cpu"
    answer = log_in(browser, locked[2], answer.url.params["next"])
    assert str(answer.url).endswith("/console/jobs?tier=cpu") and "Tenant <strong>acme" in answer.text
    assert locked[2] not in answer.text


def test_the_cookie_is_for_the_console_alone_and_isnt_the_key(
    browser: httpx.Client, locked: tuple[Served, str, str]
) -> None:
    gateway, _, key = locked
    with httpx.Client(base_url=gateway.url, timeout=60, trust_env=False) as client:
        said = client.post("/console/login", data={"key": key}, headers=OWN).headers["set-cookie"]
    assert re.search("HttpOnly", said) and re.search("SameSite=strict", said, re.I) and "Path=/console" in said
    assert key not in said
    log_in(browser, key)
    cookie = browser.cookies[COOKIE]
    assert httpx.get(f"{gateway.url}/v1/jobs", cookies={COOKIE: cookie}, trust_env=False).status_code == 401


@pytest.mark.parametrize(
    "where", ["https://elsewhere.example/", "//elsewhere.example", "/console/../v1/jobs", "/docs", "/console\\@x"]
)
def test_the_login_leads_nowhere_else(browser: httpx.Client, locked: tuple[Served, str, str], where: str) -> None:
    answer = log_in(browser, locked[2], where)
    assert answer.url.host == "127.0.0.1" and answer.url.path.startswith("/console")


def test_a_wrong_key_is_told_on_the_page(browser: httpx.Client) -> None:
    answer = log_in(browser, "fab_wrong")
    assert answer.status_code == 401 and 'role="alert"' in answer.text and "fab_wrong" not in answer.text
    assert COOKIE not in browser.cookies


def test_a_changed_or_foreign_cookie_counts_for_nothing(browser: httpx.Client, locked: tuple[Served, str, str]) -> None:
    log_in(browser, locked[2])
    whole = browser.cookies[COOKIE]
    said, secret_id, tag = whole.split(".")
    other = ("A" if tag[0] != "A" else "B") + tag[1:]
    for cookie in (
        f"{said}.{secret_id}.{other}",
        f"{said}.{secret_id}.",
        "x",
        "..",
        "é",
        f"{said[:-2]}.{secret_id}.{tag}",
    ):
        answer = httpx.get(
            f"{browser.base_url}/console", headers={"cookie": f"{COOKIE}={cookie}".encode()}, trust_env=False
        )
        assert answer.status_code == 303, cookie


def test_the_session_ends_with_the_key(browser: httpx.Client, locked: tuple[Served, str, str], eventually: Any) -> None:
    gateway, key_id, key = locked
    log_in(browser, key)
    assert browser.get("/console").status_code == 200
    gateway.ledger.write(keys.revoke, gateway.settings.secrets, key_id, time.time_ns() // 1_000_000, "cli")
    eventually(lambda: browser.get("/console").url.path == "/console/login")


def test_an_open_page_leads_to_the_login_when_its_key_ends(locked: tuple[Served, str, str], chromium: Any) -> None:
    gateway, key_id, key = locked
    context = chromium.new_context(base_url=gateway.url)
    page = context.new_page()
    page.goto("/console")
    page.get_by_label("Key").fill(key)
    with page.expect_response("**/console/live"):
        page.keyboard.press("Enter")
    gateway.ledger.write(keys.revoke, gateway.settings.secrets, key_id, time.time_ns() // 1_000_000, "cli")
    page.wait_for_url("**/console/login?**")
    context.close()


def test_logging_out_ends_it(browser: httpx.Client, locked: tuple[Served, str, str]) -> None:
    log_in(browser, locked[2])
    assert browser.post("/console/logout", headers=OWN).url.path == "/console/login"
    assert browser.get("/console").url.path == "/console/login"


def test_one_sees_ones_own_and_what_ones_scopes_show(
    by_hand: Worker, browser: httpx.Client, locked: tuple[Served, str, str], state: Callable[[str], Any]
) -> None:
    gateway, _, key = locked
    with gateway.http(headers={"authorization": f"Bearer {key}"}) as http:
        job_id = http.post("/v1/jobs", json={"endpoint": CHAT, "body": BODY}).json()["id"]
    by_hand.next().park()
    _, reader = new_key(gateway, "other", "read", "dlq")
    log_in(browser, reader)
    assert job_id not in browser.get("/console/jobs").text + browser.get("/console/dead-letters").text
    assert browser.get(f"/console/jobs/{job_id}").status_code == 404
    browser.post("/console/dead-letters/drop", data={"job": job_id, "sure": "yes"}, headers=OWN)
    assert state(job_id) == "dead"
    _, asker = new_key(gateway, "acme", "inference")
    log_in(browser, asker)
    page = browser.get("/console/jobs").text
    assert job_id in page and "Costs" not in page and "Dead letters" not in page
    assert browser.get("/console/costs").status_code == 403
    answer = browser.post("/console/dead-letters/replay", data={"job": job_id}, headers=OWN)
    assert answer.status_code == 403 and state(job_id) == "dead"


def test_one_logs_in_with_a_browser(locked: tuple[Served, str, str], view: View, axe: str) -> None:
    gateway, _, key = locked
    viewer = view(gateway.url)
    page = viewer.goes("/console/policy")
    viewer.page.evaluate(axe)
    found = viewer.page.evaluate("async () => (await axe.run(document)).violations")
    assert [one["id"] for one in found if one["impact"] in ("serious", "critical")] == []
    page.get_by_label("API key").fill(key)
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("/console/policy$"))
    page.get_by_role("button", name="Where would it go?").click()
    page.wait_for_selector("#tried *")
    page.get_by_role("button", name="Log out").click()
    page.wait_for_url(re.compile("/console/login$"))
    assert page.context.cookies() == []
