"""``/v1/files``: uploaded, listed, read and deleted."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import openai
import psutil
import pytest

from fabric.batches.storage import Storage
from fabric.contracts.ids import new_id
from fabric.contracts.sealed import Seals
from fabric.ledger import files
from fabric.ledger.files import File

if TYPE_CHECKING:
    from fabric.gateway import GatewaySettings
    from tests.gateway.conftest import Served

LINE = b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{}}\n'


def upload(http: httpx.Client, content: Any = LINE, name: str = "in.jsonl", purpose: str = "batch") -> httpx.Response:
    return http.post("/v1/files", files={"file": (name, content)}, data={"purpose": purpose})


def on_disk(gateway: Served) -> list[str]:
    return sorted(path.name for path in gateway.settings.files_dir.iterdir())


class TestUpload:
    def test_with_the_sdk(self, client: openai.OpenAI) -> None:
        file = client.files.create(file=("näme.jsonl", LINE * 3), purpose="batch")
        assert (file.object, file.purpose, file.bytes, file.filename) == ("file", "batch", len(LINE) * 3, "näme.jsonl")
        assert client.files.retrieve(file.id) == file
        assert client.files.content(file.id).read() == LINE * 3

    def test_lines_are_counted_as_it_comes(self, http: httpx.Client, gateway: Served) -> None:
        file_id = upload(http, LINE + b"\n \n" + LINE.rstrip()).json()["id"]
        assert gateway.ledger.read(files.get, "default", file_id).lines == 2

    def test_any_name_is_only_a_name(self, http: httpx.Client, gateway: Served) -> None:
        before = on_disk(gateway)
        file_id = upload(http, name="../../etc/passwd").json()["id"]
        assert on_disk(gateway) == sorted([*before, file_id])
        answer = http.get(f"/v1/files/{file_id}/content")
        assert answer.headers["content-disposition"] == "attachment; filename*=UTF-8''..%2F..%2Fetc%2Fpasswd"

    @pytest.mark.parametrize(
        ("form", "status", "param"),
        [
            ({"files": {"file": ("x", LINE)}, "data": {"purpose": "fine-tune"}}, 400, "purpose"),
            ({"files": {"file": ("x", LINE)}}, 400, "purpose"),
            ({"files": {"other": ("x", LINE)}, "data": {"purpose": "batch"}}, 400, "other"),
            ({"files": {"file": ("x", b"")}, "data": {"purpose": "batch"}}, 400, "file"),
            ({"files": {"file": ("x", b"\n \n")}, "data": {"purpose": "batch"}}, 400, "file"),
            ({"json": {"purpose": "batch"}}, 415, None),
        ],
    )
    def test_a_wrong_form_leaves_nothing(
        self, http: httpx.Client, gateway: Served, form: dict[str, Any], status: int, param: str | None
    ) -> None:
        before = on_disk(gateway)
        refused = http.post("/v1/files", **form)
        assert (refused.status_code, refused.json()["error"]["param"]) == (status, param)
        assert on_disk(gateway) == before
        assert http.get("/v1/files").json()["data"] == []

    def test_the_sdk_raises_its_own_error(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.BadRequestError) as refused:
            client.files.create(file=LINE, purpose="fine-tune")
        assert refused.value.param == "purpose"

    def test_too_many_bytes(self, settings: GatewaySettings, serve: Callable[[GatewaySettings], Served]) -> None:
        gateway = serve(replace(settings, file_limit_bytes=100_000))
        with gateway.http() as http:
            # Declared in its length; a little more than the limit, found when it comes; and without a length.
            for content in (b"x" * 1_000_000, b"x" * 100_001):
                refused = upload(http, content)
                assert (refused.status_code, refused.json()["error"]["param"]) == (413, "file")
            head = b'--e\r\ncontent-disposition: form-data; name="file"; filename="x"\r\n\r\n'
            pieces = (piece for piece in [head, *[b"x" * 10_000] * 50])
            refused = http.post(
                "/v1/files", content=pieces, headers={"content-type": "multipart/form-data; boundary=e"}
            )
            assert refused.status_code == 413
            assert upload(http, b"x" * 100_000).status_code == 200
        assert len(on_disk(gateway)) == 1

    def test_too_many_lines(self, settings: GatewaySettings, serve: Callable[[GatewaySettings], Served]) -> None:
        gateway = serve(replace(settings, line_limit=3))
        with gateway.http() as http:
            assert upload(http, LINE * 3).status_code == 200
            refused = upload(http, LINE * 4)
        assert (refused.status_code, refused.json()["error"]["param"]) == (413, "file")
        assert len(on_disk(gateway)) == 1

    def test_a_client_that_leaves_half_way_leaves_nothing(
        self, gateway: Served, http: httpx.Client, eventually: Any
    ) -> None:
        before = on_disk(gateway)
        address = urlsplit(gateway.url)
        with socket.create_connection((address.hostname, address.port)) as connection:
            head = b"POST /v1/files HTTP/1.1\r\nhost: x\r\ncontent-type: multipart/form-data; boundary=e\r\n"
            part = b'--e\r\ncontent-disposition: form-data; name="file"; filename="x"\r\n\r\n'
            connection.sendall(head + b"content-length: 9000000\r\n\r\n" + part + b"x" * 3_000_000)
            eventually(lambda: on_disk(gateway) != before)
        eventually(lambda: on_disk(gateway) == before)
        assert http.get("/v1/files").json()["data"] == []

    def test_a_large_file_takes_little_memory(self, gateway: Served, http: httpx.Client) -> None:
        line = LINE.rstrip() + b" " * 4_000 + b"\n"
        process = psutil.Process()
        sizes: list[int] = []

        def content() -> Iterator[bytes]:
            yield b'--e\r\ncontent-disposition: form-data; name="file"; filename="x"\r\n\r\n'
            for _ in range(150):
                sizes.append(process.memory_info().rss)
                yield line * 256
            yield b'\r\n--e\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--e--\r\n'

        answer = http.post("/v1/files", content=content(), headers={"content-type": "multipart/form-data; boundary=e"})
        assert answer.json()["bytes"] == len(line) * 256 * 150
        assert max(sizes) - sizes[0] < 50_000_000  # of 156 MB


class TestContent:
    def test_a_large_file_comes_whole(self, http: httpx.Client) -> None:
        content = LINE * 40_000
        file_id = upload(http, content).json()["id"]
        answer = http.get(f"/v1/files/{file_id}/content")
        assert answer.content == content
        assert answer.headers["content-length"] == str(len(content))
        assert answer.headers["content-type"] == "application/octet-stream"

    def test_it_isnt_readable_on_the_disk(self, http: httpx.Client, gateway: Served) -> None:
        file_id = upload(http, LINE + b"canary-4711\n").json()["id"]
        lying = (gateway.settings.files_dir / file_id).read_bytes()
        assert b"canary-4711" not in lying
        assert LINE[:20] not in lying

    @pytest.mark.parametrize("harm", [lambda data: data[:-1], lambda data: b"{}\n" * 100, lambda data: b""])
    def test_bytes_that_arent_what_came(self, http: httpx.Client, gateway: Served, harm: Any) -> None:
        file_id = upload(http).json()["id"]
        path = gateway.settings.files_dir / file_id
        path.write_bytes(harm(path.read_bytes()))
        refused = http.get(f"/v1/files/{file_id}/content")
        assert (refused.status_code, refused.json()["error"]["code"]) == (500, "broken_seal")

    def test_bytes_that_are_gone(self, http: httpx.Client, gateway: Served) -> None:
        file_id = upload(http).json()["id"]
        (Path(gateway.settings.files_dir) / file_id).unlink()
        assert http.get(f"/v1/files/{file_id}/content").status_code == 404


class TestDelete:
    def test_it_is_gone(self, client: openai.OpenAI, gateway: Served) -> None:
        before = on_disk(gateway)
        file = client.files.create(file=LINE, purpose="batch")
        assert client.files.delete(file.id).deleted
        assert on_disk(gateway) == before
        for look in (client.files.retrieve, client.files.content, client.files.delete):
            with pytest.raises(openai.NotFoundError):
                look(file.id)

    def test_not_while_a_batch_reads_it(self, client: openai.OpenAI) -> None:
        file = client.files.create(file=LINE, purpose="batch")
        client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
        with pytest.raises(openai.ConflictError):
            client.files.delete(file.id)
        assert client.files.content(file.id).read() == LINE


class TestLists:
    def test_in_pages_and_both_orders(self, client: openai.OpenAI) -> None:
        created = []
        for number in range(5):
            created.append(client.files.create(file=(f"{number}", LINE), purpose="batch").id)
            _next_millisecond()
        assert [file.id for file in client.files.list(limit=2)] == created[::-1]
        assert [file.id for file in client.files.list(limit=2, order="asc")] == created
        page = client.files.list(limit=2, after=created[3])
        assert ([file.id for file in page.data], page.has_more) == ([created[2], created[1]], True)

    def test_by_purpose(self, http: httpx.Client, gateway: Served) -> None:
        upload(http)
        output = _stored(gateway, purpose="batch_output")
        assert [file["id"] for file in http.get("/v1/files?purpose=batch_output").json()["data"]] == [output]
        assert http.get("/v1/files?purpose=nope").json()["data"] == []

    @pytest.mark.parametrize(
        ("query", "param"),
        [
            ("limit=0", "limit"),
            ("order=up", "order"),
            ("after=nope", "after"),
            ("after=file_00000000000000000000000000", "after"),
            ("aftre=x", "aftre"),
        ],
    )
    def test_wrong_parameters_are_named(self, http: httpx.Client, query: str, param: str) -> None:
        refused = http.get(f"/v1/files?{query}")
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)


class TestWhoMayLook:
    @pytest.mark.parametrize("path", ["", "/content"])
    @pytest.mark.parametrize("file_id", ["nope", "file_00000000000000000000000000", "..%2F..%2Fetc", "%00"])
    def test_unknown_files(self, http: httpx.Client, file_id: str, path: str) -> None:
        assert http.get(f"/v1/files/{file_id}{path}").status_code == 404
        assert http.delete(f"/v1/files/{file_id}").status_code in (404, 405)

    def test_another_tenants_file_is_unknown(self, http: httpx.Client, gateway: Served) -> None:
        file_id = _stored(gateway, tenant="other")
        assert http.get(f"/v1/files/{file_id}").status_code == 404
        assert http.get(f"/v1/files/{file_id}/content").status_code == 404
        assert http.delete(f"/v1/files/{file_id}").status_code == 404
        assert http.get("/v1/files").json()["data"] == []
        body = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        assert http.post("/v1/batches", json=body).status_code == 400


def _stored(gateway: Served, tenant: str = "default", purpose: str = "batch") -> str:
    """A file that no upload made."""
    file = File(new_id("file"), tenant, purpose, "x", len(LINE), 1, "", time.time_ns() // 1_000_000)
    gateway.ledger.write(files.create, replace(file, path=file.id))
    with Storage(gateway.settings.files_dir, Seals(gateway.settings.secrets)).writing(file.id) as sealed:
        sealed.write(LINE)
    return file.id


def _next_millisecond() -> None:
    now = time.time_ns() // 1_000_000
    while time.time_ns() // 1_000_000 == now:
        pass
