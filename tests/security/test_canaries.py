"""Prompts, answers, keys and secrets on every way that goes wrong: in no log, page, metric, trace, message or row."""

from __future__ import annotations

import base64
import json
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import redis

from tests.conftest import free_ports
from tests.security.conftest import until

if TYPE_CHECKING:
    from tests.security.conftest import House, NewHouse
    from tests.security.outside import Outside

PROMPT, ANSWER, PROVIDER_KEY, BAD_KEY = "CANARYPROMPT", "CANARYANSWER", "CANARYPROVIDERKEY", "CANARYBADKEY"
SECRET = "CANARYSECRET" + "0" * 40
HOOK_SECRET = "whsec_" + base64.b64encode(b"CANARYHOOKSECRET" * 2).decode()
#: How a hosted API goes wrong. The code of an error follows its status.
WAYS = (
    *("e400", "e401", "e402", "e403", "e404", "e408", "e409", "e413", "e422", "e429", "e500", "e503", "e529"),
    *("e400-context_length_exceeded", "e400-content_filter", "e429-insufficient_quota"),
    *("html", "redirect", "nonsense", "error-event", "truncated", "cut", "bad-event", "bad-chunk", "hang", "refusal"),
)
IMPATIENT = {"first_token_timeout_s": 1, "between_tokens_timeout_s": 1, "total_timeout_s": 2, "limit_wait_s": 0}


def models(url: str) -> list[dict[str, Any]]:
    def place(engine: str, how: str) -> dict[str, Any]:
        base = f"{url}/v1" if engine == "openai" else url
        never = {"failures": 10_000, "minimum": 10_000}
        shared = {"tier": "cloud", "base_url": base, "model": how, "api_key_env": "SOME_KEY", "context_window": 4096}
        return {**shared, "engine": engine, "name": f"{engine}-{how}", "options": IMPATIENT, "breaker": never}

    hosted = [
        {"name": f"{engine}-{how}", "deployments": [place(engine, how)]}
        for engine in ("openai", "anthropic")
        for how in (*WAYS, "fine")
    ]
    slow = {"engine": "mock", "tier": "cpu", "name": "slow", "options": {"latency_ms": 600_000}}
    return [*hosted, {"name": "slow", "deployments": [slow]}]


@pytest.fixture(scope="module")
def house(new_house: NewHouse, outside: Outside) -> Iterator[House]:
    hook = {"name": "ops", "url": f"{outside.url}/hook", "secret_env": "HOOK_SECRET", "allow_private": True}
    variables = {
        "SOME_KEY": PROVIDER_KEY,
        "HOOK_SECRET": HOOK_SECRET,
        "FABRIC_SECRET": SECRET,
        "FABRIC_LOG_LEVEL": "DEBUG",
        "OTEL_EXPORTER_OTLP_ENDPOINT": outside.url,
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "FLOWER_UNAUTHENTICATED_API": "true",
    }
    events = ["job.succeeded", "job.failed", "job.dead", "batch.completed"]
    config = {"webhooks": [{**hook, "events": events}]}
    house = new_house("valkey", models(outside.url), config=config, **variables)
    yield house.open("cpu", "cloud")
    house.close()


@pytest.fixture(scope="module")
def key(house: House) -> str:
    made = command(house, "keys", "create", "--tenant", "acme", "--scope", "admin", "--scope", "inference")
    return made.stdout.strip()


def command(house: House, *arguments: str) -> subprocess.CompletedProcess[str]:
    environ = house.environ("gateway")
    ran = [sys.executable, "-m", "fabric.cli", *arguments]
    return subprocess.run(ran, env=environ, cwd=house.folder, capture_output=True, text=True, timeout=120, check=True)


def body(model: str, **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": f"tell {PROMPT}"}], **fields}


def drive(house: House, http: httpx.Client) -> None:
    """All that can go wrong from outside, and some that goes well."""
    job = {"endpoint": "/v1/chat/completions"}
    waiting = []
    for engine in ("openai", "anthropic"):
        for how in WAYS:
            # Some are tried for as long as they may take.
            asked = {**job, "body": body(f"{engine}-{how}"), "fabric": {"deadline_s": 20}}
            waiting.append(http.post("/v1/jobs", json=asked).json()["id"])
        for how in ("cut", "bad-event", "bad-chunk", "e401", "refusal", "error-event"):
            http.post("/v1/chat/completions", json=body(f"{engine}-{how}", stream=True))
        assert ANSWER in http.post("/v1/chat/completions", json=body(f"{engine}-fine")).text
    bad: list[Any] = [
        body("nobody-" + PROMPT),
        body("openai-fine", **{PROMPT: 1}),
        body("openai-fine", max_tokens=PROMPT),
        body("openai-fine", fabric={"deadline_s": PROMPT}),
        {"model": "openai-fine", "messages": PROMPT},
        {"model": "openai-fine", "messages": [{"role": PROMPT, "content": PROMPT}]},
        body("openai-fine", tools=[{"type": "function", "function": {"name": PROMPT + " "}}]),
        body("openai-fine", messages=[{"role": "user", "content": PROMPT + "x " * 30_000}]),
        body("slow", fabric={"deadline_s": 1}),
    ]
    for asked in bad:
        assert http.post("/v1/chat/completions", json=asked).status_code >= 400, asked
    for raw in (f'{{"model": "{PROMPT}', f'"{PROMPT}"', "[" * 100_000 + PROMPT, PROMPT + "\udcff\x00"):
        data = raw.encode("utf-8", "surrogateescape")
        assert http.post("/v1/chat/completions", content=data, headers=JSON).status_code == 400
    assert http.get(f"/v1/jobs/{PROMPT}", headers={"authorization": f"Bearer {BAD_KEY}"}).status_code == 401
    assert http.get(f"/v1/jobs/{PROMPT}?{PROMPT}={PROMPT}").status_code >= 400
    batch(house, http)
    crash(house, http)
    for job_id in waiting:
        until(lambda job_id=job_id: http.get(f"/v1/jobs/{job_id}").json()["state"] in ENDED, house.logs)
    parked = http.get("/v1/dead-letters").json()["data"]
    assert parked
    http.post(f"/v1/dead-letters/{parked[0]['job_id']}/replay")


JSON = {"content-type": "application/json"}
ENDED = ("succeeded", "failed", "dead", "cancelled", "expired")


def batch(house: House, http: httpx.Client) -> None:
    """Lines that run, that fail, and that aren't any."""
    line = {"method": "POST", "url": "/v1/chat/completions"}
    good = [{**line, "custom_id": m, "body": body(m)} for m in ("openai-fine", "openai-e400", "anthropic-refusal")]
    wrong: list[str] = [f'{{"custom_id": "x", "{PROMPT}', json.dumps({**line, "custom_id": "y", "body": PROMPT})]
    wrong += [json.dumps({**line, "custom_id": "z", "body": body("openai-fine", n=PROMPT)}), PROMPT]
    for rows in ([*map(json.dumps, good)], [*map(json.dumps, good), *wrong]):
        files = {"file": ("in.jsonl", "\n".join(rows).encode())}
        file = http.post("/v1/files", files=files, data={"purpose": "batch"}).json()
        asked = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        made = http.post("/v1/batches", json=asked).json()
        until(lambda made=made: http.get(f"/v1/batches/{made['id']}").json()["status"] in DONE, house.logs)


DONE = ("completed", "failed")


def crash(house: House, http: httpx.Client) -> None:
    """A worker dies with a prompt in its hands; another one gets the job, and is told to stop."""
    asked = {"endpoint": "/v1/chat/completions", "body": body("slow")}
    job_id = http.post("/v1/jobs", json=asked).json()["id"]
    until(lambda: http.get(f"/v1/jobs/{job_id}").json()["state"] == "running", house.logs)
    house.processes["worker-cpu"].send_signal(signal.SIGKILL)
    house.processes["worker-cpu"].wait()
    house.start("worker-cpu", "worker", "cpu")
    until(lambda: http.get(f"/v1/jobs/{job_id}").json()["attempts"][1:], house.logs)
    http.post(f"/v1/jobs/{job_id}/cancel")
    until(lambda: http.get(f"/v1/jobs/{job_id}").json()["state"] == "cancelled", house.logs)


@pytest.fixture(scope="module")
def seen(house: House, outside: Outside, key: str) -> dict[str, str]:
    """Where somebody might read -> everything that is there."""
    (port,) = free_ports(1)
    flower = ("flower", "--address=127.0.0.1", f"--port={port}", "--read_only=true")
    house.run("monitor", sys.executable, "-m", "celery", "-A", "fabric.broker", *flower, log="flower")
    pages = httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60)
    until(lambda: _answers(pages), house.logs)
    with sniffing(house) as traffic, house.http() as http:
        http.headers["authorization"] = f"Bearer {key}"
        drive(house, http)
        until(lambda: len(outside.hooks) > 3 and outside.traces, house.logs)
        until(lambda: http.get("/v1/usage").json()["data"], house.logs)
        found = {"metrics": http.get("/metrics").text}
        for path in ("/v1/tiers", "/v1/usage", "/v1/costs", "/v1/dead-letters", "/v1/jobs", "/openapi.json"):
            found[path] = http.get(path).text
    tasks = pages.get("/api/tasks").json()
    shown = [pages.get(path).text for path in ("/workers", "/tasks", "/broker", "/metrics")]
    shown += [pages.get(f"/task/{name}").text for name in list(tasks)[:5]]
    found["flower"] = "\n".join([json.dumps(tasks), *shown])
    found |= {"broker's traffic": "\n".join(traffic), "webhooks": b"\n".join(outside.hooks).decode()}
    found |= {f"log of {log.stem}": log.read_text("utf-8", "replace") for log in house.folder.glob("*.log")}
    found["traces"] = outside.traces.decode("latin-1")
    found["audit"] = command(house, "audit", "export").stdout
    found["store"] = stored(house)
    with closing(sqlite3.connect(house.folder / "ledger.sqlite3")) as ledger:
        found["ledger"] = "\n".join(ledger.iterdump())
    found["files"] = "\n".join(
        path.read_bytes().decode("latin-1") for path in (house.folder / "files").rglob("*") if path.is_file()
    )
    pages.close()
    return found


def _answers(pages: httpx.Client) -> bool:
    try:
        return pages.get("/workers").text.count("@") > 1
    except httpx.TransportError:
        return False


class sniffing:
    """What goes to the database of the broker, and what is called in the store's."""

    def __init__(self, house: House) -> None:
        self._admin = house.redis("admin")
        self._lines: list[str] = []

    def __enter__(self) -> list[str]:
        self._monitor = self._admin.monitor().__enter__()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        return self._lines

    def _listen(self) -> None:
        try:
            for heard in self._monitor.listen():
                if heard["db"] == 1:
                    self._lines.append(_plain(heard["command"]))
        except Exception:  # noqa: BLE001 - closed
            pass

    def __exit__(self, *_: object) -> None:
        self._admin.close()


def _plain(said: str) -> str:
    """With the bodies of messages, which are in base 64."""
    start = said.find('"body": \\"')
    word = said[start + 10 :].partition('\\"')[0] if start >= 0 else ""
    try:
        return said + base64.b64decode(word).decode("utf-8", "replace")
    except ValueError:
        return said


def stored(house: House) -> str:
    """All of the store: what is sealed there, too."""
    reads = {"string": "GET", "hash": "HGETALL", "set": "SMEMBERS"}
    said = []
    with redis.Redis.from_url(house.role("admin")["FABRIC_REDIS_URL"]) as admin:
        for name in admin.scan_iter(count=1000):
            kind = admin.type(name).decode()
            if kind == "stream":
                value = admin.xrange(name)
            elif kind in reads:
                value = admin.execute_command(reads[kind], name)
            else:
                value = admin.execute_command({"list": "LRANGE", "zset": "ZRANGE"}[kind], name, 0, -1)
            said.append(f"{name!r} {value!r}")
    return "\n".join(said)


CANARIES = {"a prompt": PROMPT, "an answer": ANSWER, "a provider's key": PROVIDER_KEY, "a wrong key": BAD_KEY}
CANARIES |= {"the secret": SECRET, "a webhook's secret": "CANARYHOOKSECRET", "its base64": HOOK_SECRET[6:]}


@pytest.mark.parametrize("what", [*CANARIES, "a key"])
def test_nowhere(seen: dict[str, str], key: str, what: str) -> None:
    canary = CANARIES.get(what, key)
    found = {place: _around(text, canary) for place, text in seen.items() if canary in text}
    assert found == {}


def _around(text: str, canary: str) -> list[str]:
    at = text.find(canary)
    return [text[max(0, at - 300) : at + 100], f"{text.count(canary)} times"]


def test_all_of_it_happened(seen: dict[str, str], outside: Outside) -> None:
    """Otherwise there was nothing to find."""
    assert set(outside.served) == {*WAYS, "fine"}
    for place, text in seen.items():
        assert len(text) > 100 or place.startswith("log of "), place
    assert "fabric.run" in seen["broker's traffic"] and "job_" in seen["flower"]
    assert "rescue" in seen["log of scheduler"]
