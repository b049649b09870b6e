"""``Upload``: a form read as it comes, in whatever pieces."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.datastructures import Headers

from fabric.contracts.errors import FabricError, InvalidRequest, TooLarge
from fabric.gateway.body import ClientGone, UnsupportedMediaType
from fabric.gateway.upload import Upload

HEADERS = Headers({"content-type": "multipart/form-data; boundary=edge"})
PURPOSE = b'content-disposition: form-data; name="purpose"\r\n\r\nbatch'


def file(content: bytes = b"{}\n", name: str = "in.jsonl") -> bytes:
    head = f'content-disposition: form-data; name="file"; filename="{name}"\r\ncontent-type: application/jsonl\r\n\r\n'
    return head.encode() + content


def form(*parts: bytes) -> bytes:
    return b"".join(b"--edge\r\n" + part + b"\r\n" for part in parts) + b"--edge--\r\n"


async def read(pieces: Sequence[bytes], headers: Headers = HEADERS, limit_bytes: int = 10_000_000) -> tuple[str, bytes]:
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": piece, "more_body": index < len(pieces) - 1}
        for index, piece in enumerate(pieces)
    ]

    async def receive() -> dict[str, Any]:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    upload = Upload(receive, headers, limit_bytes=limit_bytes)
    content = b"".join([piece async for piece in upload])
    return upload.filename, content


@pytest.mark.parametrize("parts", [(file(), PURPOSE), (PURPOSE, file())], ids=["file first", "purpose first"])
async def test_a_file(parts: tuple[bytes, ...]) -> None:
    assert await read([form(*parts)]) == ("in.jsonl", b"{}\n")


@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=300), cuts=st.lists(st.integers(0, 600), max_size=12))
async def test_in_any_pieces(content: bytes, cuts: list[int]) -> None:
    content = content.replace(b"--edge", b"")
    body = form(file(content), PURPOSE)
    edges = sorted({0, len(body), *(cut for cut in cuts if cut < len(body))})
    pieces = [body[start:end] for start, end in pairwise(edges)]
    assert await read(pieces) == ("in.jsonl", content)


async def test_a_file_that_looks_like_its_own_end() -> None:
    content = b"\r\n--edg\r\n--edgE--\r\n\r\n--"
    assert await read([form(PURPOSE, file(content))]) == ("in.jsonl", content)


async def test_names_as_they_are_written() -> None:
    name, _ = await read([form(PURPOSE, file(name='../é\\"x.jsonl'))])
    assert name == '../é"x.jsonl'


@pytest.mark.parametrize(
    ("parts", "param"),
    [
        ((PURPOSE,), "file"),
        ((file(),), "purpose"),
        ((file(), PURPOSE.replace(b"batch", b"fine-tune")), "purpose"),
        ((file(), PURPOSE.replace(b"batch", b"batch" * 20_000)), "purpose"),
        ((file(), PURPOSE, file()), "file"),
        ((file().replace(b'; filename="in.jsonl"', b""), PURPOSE), "file"),
        ((PURPOSE.replace(b"purpose", b"expires_after"), file()), "expires_after"),
        ((b"x: y\r\n\r\n",), ""),
    ],
)
async def test_a_wrong_form_names_its_field(parts: Iterable[bytes], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await read([form(*parts)])
    assert refused.value.param == param


@pytest.mark.parametrize(
    "body",
    [b"", b"nonsense", form(file(), PURPOSE)[:-6], form(file(), PURPOSE)[:40], b"--edge\r\nno header\r\n\r\n"],
)
async def test_a_broken_form(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        await read([body])


@pytest.mark.parametrize("kind", ["", "application/json", "multipart/form-data", "multipart/form-data; boundary="])
async def test_another_content_type(kind: str) -> None:
    with pytest.raises(UnsupportedMediaType):
        await read([form(file(), PURPOSE)], Headers({"content-type": kind}))


async def test_a_boundary_of_any_length() -> None:
    with pytest.raises(FabricError):
        await read([b""], Headers({"content-type": f"multipart/form-data; boundary={'x' * 5_000}"}))


async def test_a_length_over_the_limit_is_refused_before_it_is_read() -> None:
    headers = Headers({**HEADERS, "content-length": "70000"})
    with pytest.raises(TooLarge):
        await read([], headers, limit_bytes=1_000)


async def test_a_client_that_leaves_half_way() -> None:
    body = form(file(), PURPOSE)

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    messages = [{"type": "http.request", "body": body[:100], "more_body": True}, {"type": "http.disconnect"}]
    with pytest.raises(ClientGone):
        async for _ in Upload(receive, HEADERS, limit_bytes=1_000):
            pass
