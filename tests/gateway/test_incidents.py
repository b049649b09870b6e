"""What has gone wrong in gateways like this one, each as somebody would try it here."""

from __future__ import annotations

import contextlib
import gzip
import logging
import socket
import time
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from tests.gateway.conftest import eventually

if TYPE_CHECKING:
    import httpx

    from tests.gateway.conftest import Served, Worker

CHAT = "/v1/chat/completions"
INJECTIONS = (
    "'; DROP TABLE usage; --",
    "x' OR '1'='1",
    '") UNION SELECT digest FROM keys --',
    "%' AND 1=1 --",
    "\\'; SELECT pg_sleep(10); --",
)
PATHS = (
    "../../etc/passwd",
    "..%2f..%2fetc%2fpasswd",
    "/etc/passwd",
    "....//....//etc/passwd",
    "file_..",
    "%00",
    "a\\..\\b",
)
LINE = {"custom_id": "a", "method": "POST", "url": CHAT}


def chat(text: str = "hi", **fields: Any) -> dict[str, Any]:
    return {"model": "small", "messages": [{"role": "user", "content": text}], **fields}


class TestSqlInjection:
    @pytest.mark.parametrize("text", INJECTIONS)
    def test_by_filters(self, http: httpx.Client, text: str) -> None:
        for path in ("/v1/usage", "/v1/costs"):
            for name in ("tenant", "model", "tag", "key", "deployment", "group_by", "cursor", "since"):
                answer = http.get(path, params={name: text})
                assert answer.status_code in (200, 400), f"{path} {name}: {answer.text}"
                if answer.status_code == 200 and name != "group_by":
                    assert sum(row["requests"] for row in answer.json()["data"]) == 0
        assert http.get("/v1/webhook-deliveries", params={"webhook": text}).json()["data"] == []
        assert http.get("/v1/dead-letters", params={"model": text, "reason": text[:64]}).status_code == 200

    @pytest.mark.parametrize("text", INJECTIONS)
    def test_by_tags_and_metadata(self, http: httpx.Client, worker: Worker, text: str) -> None:
        tagged = http.post(CHAT, json=chat(fabric={"tags": [text]}))
        assert tagged.status_code in (200, 400)
        line = orjson.dumps({**LINE, "custom_id": text, "body": chat()}) + b"\n"
        file = http.post("/v1/files", files={"file": (text, line)}, data={"purpose": "batch"}).json()
        asked = {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h", "metadata": {"k": text}}
        batch = http.post("/v1/batches", json=asked).json()
        assert batch["metadata"] == {"k": text}
        kept = http.get(f"/v1/files/{file['id']}").json()["filename"]
        assert kept.replace("%22", '"') == text, "as clients write a quote in a form"


class TestPathTraversal:
    @pytest.mark.parametrize("path", PATHS)
    def test_by_ids(self, http: httpx.Client, path: str) -> None:
        for route in ("/v1/files/{}", "/v1/files/{}/content", "/v1/batches/{}", "/v1/jobs/{}"):
            answer = http.get(route.format(path))
            assert answer.status_code in (400, 404), answer.text
            assert "root:" not in answer.text

    @pytest.mark.parametrize("path", ["../../x.jsonl", "/tmp/x.jsonl", "a/../../b", "..", "x\x00.jsonl", "C:\\x"])
    def test_by_names_of_files(self, gateway: Served, http: httpx.Client, path: str) -> None:
        """The name is kept for people; on the disk a file has the name of its id."""
        line = orjson.dumps({**LINE, "body": chat()}) + b"\n"
        before = {found.name for found in gateway.settings.files_dir.parent.rglob("*")}
        answer = http.post("/v1/files", files={"file": (path, line)}, data={"purpose": "batch"})
        assert answer.status_code in (200, 400), answer.text
        if answer.status_code == 200:
            added = {found.name for found in gateway.settings.files_dir.parent.rglob("*")} - before
            assert all(name.startswith(("file_", "ledger")) for name in added), added


class TestOddTexts:
    @pytest.mark.parametrize("text", ["\x00", "\ud800", "\U0010ffff", "a\u202eb", "\r\nset-cookie: a=b", "\x1b[31m"])
    def test_in_prompts_names_and_tags(self, http: httpx.Client, worker: Worker, text: str) -> None:
        raw = (
            orjson.dumps
            if "\ud800" not in text
            else lambda value: b'{"model":"small","messages":[{"role":"user","content":"\\ud800"}]}'
        )
        for body in (chat(text), {**chat(), "model": text}, chat(user=text), chat(fabric={"tags": [text]})):
            answer = http.post(CHAT, content=raw(body), headers={"content-type": "application/json"})
            assert answer.status_code in (200, 400, 404), answer.text
            assert "set-cookie" not in answer.headers

    def test_no_line_of_the_log_is_the_callers(
        self, http: httpx.Client, worker: Worker, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG, "fabric")
        forged = "x\n2026-01-01 00:00:00 gateway ERROR all keys are revoked \x1b[2J"
        http.post(CHAT, json=chat(user=forged, fabric={"tags": [forged[:60]]}))
        http.post("/v1/jobs", json={"endpoint": CHAT, "body": {**chat(), "model": forged}})
        http.get("/v1/jobs/" + "job_%0aERROR")
        http.get("/v1/%0d%0aERROR", headers={"idempotency-key": "a"})
        assert not [r for r in caplog.records if "all keys are revoked" in r.getMessage() or "\n" in r.getMessage()]

    @pytest.mark.parametrize("depth", [100, 5_000, 500_000])
    def test_nesting_without_end(self, http: httpx.Client, worker: Worker, depth: int) -> None:
        nested = b'{"model":"small","messages":' + b"[" * depth + b"]" * depth + b"}"
        schema = b'{"type":"object","properties":' * min(depth, 50_000) + b"{}" + b"}" * min(depth, 50_000)
        tool = (
            b'{"model":"small","messages":[{"role":"user","content":"a"}],"tools":[{"type":"function","function":{"name":"f","parameters":'
            + schema
            + b"}}]}"
        )
        for body in (nested, tool):
            answer = http.post(CHAT, content=body, headers={"content-type": "application/json"})
            assert answer.status_code in (200, 400, 413, 422), answer.text[:300]

    @pytest.mark.parametrize("number", ["1e400", "-1e400", "NaN", "Infinity", "9" * 5_000, "1e-400", "0.1e1"])
    def test_numbers_beyond_all_bounds(self, http: httpx.Client, worker: Worker, number: str) -> None:
        for field in ("max_tokens", "temperature", "seed", "n"):
            body = f'{{"model":"small","messages":[{{"role":"user","content":"a"}}],"{field}":{number}}}'
            answer = http.post(CHAT, content=body.encode(), headers={"content-type": "application/json"})
            assert answer.status_code in (200, 400), answer.text[:300]


class TestBodies:
    def test_a_zip_bomb_is_not_unpacked(self, http: httpx.Client) -> None:
        """10 MB of zeros in 10 KB: nobody here unpacks, so it is no JSON."""
        packed = gzip.compress(orjson.dumps(chat("0" * 10_000_000)))
        began = time.monotonic()
        headers = {"content-type": "application/json", "content-encoding": "gzip"}
        answer = http.post(CHAT, content=packed, headers=headers)
        assert answer.status_code in (400, 415)
        assert time.monotonic() - began < 10

    def test_a_body_that_is_longer_than_it_says_is_stopped(self, gateway: Served) -> None:
        """Two requests in the bytes of one: the second must not be read as somebody's next one with a body."""
        host, port = gateway.url.removeprefix("http://").split(":")
        smuggled = b"GET /v1/jobs HTTP/1.1\r\nhost: a\r\n\r\n"
        request = (
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
            b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + smuggled
        )
        with socket.create_connection((host, int(port)), 30) as connection:
            connection.settimeout(30)
            connection.sendall(request)
            said = connection.recv(65_536)
        assert said.startswith(b"HTTP/1.1 400")
        assert b"200 OK" not in said

    @pytest.mark.parametrize("head", [b"x-long: ", b""])
    def test_headers_without_end_are_refused(self, gateway: Served, head: bytes) -> None:
        """One that is long, or ever more of them."""
        endless = head + (b"a" * 1_000 if head else b"x-more: a\r\n" * 100)
        host, port = gateway.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), 30) as connection:
            connection.settimeout(30)
            connection.sendall(b"GET /health/live HTTP/1.1\r\nhost: a\r\n")
            sent = 0
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                while sent < 20_000_000:
                    connection.sendall(endless)
                    sent += len(endless)
        assert sent < 20_000_000

    def test_a_head_that_never_ends_is_not_waited_for(
        self, gateway: Served, monkeypatch: pytest.MonkeyPatch, http: httpx.Client
    ) -> None:
        monkeypatch.setattr("fabric.gateway.bounded_http.HEAD_S", 0.3)
        host, port = gateway.url.removeprefix("http://").split(":")
        for begun in (b"", b"GET /health/live HTTP/1.1\r\nhost:"):
            with socket.create_connection((host, int(port)), 30) as connection:
                connection.settimeout(30)
                connection.sendall(begun)
                assert connection.recv(65_536).startswith(b"HTTP/1.1 400")
                assert connection.recv(65_536) == b""

    def test_one_that_is_large_and_complete_is_taken(self, http: httpx.Client) -> None:
        for _ in range(3):
            assert http.get("/health/live", headers={"x-large": "a" * 30_000}).status_code == 200

    def test_an_image_is_fetched_from_nowhere(self, http: httpx.Client) -> None:
        """Neither from the cloud's metadata nor from anywhere else: an image comes with the request."""
        for url in (
            "http://169.254.169.254/latest/meta-data",
            "http://127.0.0.1:6379/",
            "file:///etc/passwd",
            "https://example.com/a.png",
        ):
            parts = [{"type": "image_url", "image_url": {"url": url}}]
            answer = http.post(CHAT, json={"model": "small", "messages": [{"role": "user", "content": parts}]})
            assert answer.status_code == 400, answer.text


def test_the_gateway_has_outlived_it_all(http: httpx.Client, worker: Worker) -> None:
    eventually(lambda: http.get("/health/ready").status_code == 200)
    assert http.post(CHAT, json=chat()).status_code == 200
