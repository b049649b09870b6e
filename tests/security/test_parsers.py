"""Whatever bytes go into a parser, what comes out are values or the errors that it names; and memory stays bounded."""

from __future__ import annotations

import io
import json
import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from starlette.datastructures import Headers

from fabric.batches.expand import read_lines
from fabric.batches.request_line import BadLine, read_line
from fabric.contracts.catalog import Catalog, Deployment, Model
from fabric.contracts.errors import ConfigError, FabricError, InvalidRequest
from fabric.gateway.upload import Upload
from fabric.settings import document
from workers.engines import anthropic_answer, openai_wire
from workers.engines.asking import ErrorEvent, NotTheProtocol
from workers.engines.sse import EventParser, TooLong

CATALOG = Catalog(models=(Model(name="m", deployments=(Deployment(name="m-cpu", engine="mock", tier="cpu"),)),))
#: Some 100 each, so that the room stays quick.
FEW = settings(max_examples=120, deadline=None)
scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8)
#: Names that parsers look for, and others.
names = st.sampled_from(
    [
        "choices",
        "delta",
        "message",
        "content",
        "index",
        "finish_reason",
        "tool_calls",
        "usage",
        "prompt_tokens",
        "completion_tokens",
        "total_tokens",
        "type",
        "text",
        "thinking",
        "tool_use",
        "input",
        "id",
        "name",
        "error",
        "stop_reason",
        "content_block",
        "code",
        "refusal",
        "logprobs",
        "data",
        "input_tokens",
        "model",
        "messages",
        "role",
        "stream",
        "n",
        "stop",
        "tools",
        "custom_id",
        "method",
        "url",
        "body",
    ]
)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=5), max_leaves=25
)
#: As text, as Python writes it: with NaN, lone surrogates, and numbers beyond all bounds.
as_json = anything.map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass"))
deep = st.integers(1, 3_000).map(lambda n: b'{"choices":' + b"[" * n + b"]" * n + b"}")
raw = st.binary(max_size=200) | as_json | deep


def nested(depth: int) -> dict[str, Any]:
    value: Any = "x"
    for _ in range(depth):
        value = [value]
    return {"content": value, "role": "assistant"}


CHUNK = {"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": None}]}


class TestProvidersAnswers:
    @FEW
    @given(raw)
    @example(orjson.dumps({"choices": [{"message": nested(240)}]}))
    @example(json.dumps({"choices": [{"message": nested(600)}]}).encode())
    def test_of_openai(self, body: bytes) -> None:
        for endpoint in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings"):
            try:
                answer, _ = openai_wire.whole_answer(endpoint, body)  # type: ignore[arg-type]  # a literal
            except (NotTheProtocol, ErrorEvent):
                continue
            orjson.dumps(answer)  # it goes on as JSON
            openai_wire.written_tokens(answer)

    @FEW
    @given(st.lists(raw, max_size=4))
    @example([json.dumps({"choices": [{"delta": nested(600)}]}).encode()])
    def test_streams_of_openai(self, events: list[bytes]) -> None:
        fold = openai_wire.StreamFold("/v1/chat/completions", 1)
        try:
            for event in events:
                for chunk in fold.take(event):
                    assert orjson.loads(chunk)["choices"]
        except (NotTheProtocol, ErrorEvent):
            pass
        assert fold.written_tokens >= 0

    @FEW
    @given(raw, anything, anything)
    @example(b"", [{"type": "text", "text": "x"}], [])
    @example(b"", [{"type": "tool_use", "id": "x", "name": "x", "input": nested(600)}], "end_turn")
    def test_of_anthropic(self, body: bytes, content: Any, stop_reason: Any) -> None:
        message = {"type": "message", "content": content, "stop_reason": stop_reason, "usage": content}
        for sent in (body, json.dumps(message).encode("utf-8", "surrogatepass")):
            try:
                answer, _ = anthropic_answer.whole_answer(sent)
            except (NotTheProtocol, ErrorEvent):
                continue
            orjson.dumps(answer)

    @FEW
    @given(
        st.lists(
            raw
            | st.builds(
                lambda kind, rest: json.dumps({"type": kind, **rest}).encode("utf-8", "surrogatepass"),
                st.sampled_from(
                    [
                        "message_start",
                        "content_block_start",
                        "content_block_delta",
                        "content_block_stop",
                        "message_delta",
                        "ping",
                    ]
                ),
                st.dictionaries(st.sampled_from(["delta", "content_block", "message", "usage"]), anything, max_size=3),
            ),
            max_size=5,
        )
    )
    @example([b'{"type": "message_delta", "delta": {"stop_reason": ["x"]}}'])
    @example([b'{"type": "message_delta", "delta": {"stop_reason": {"x": 1}}}'])
    @example(
        [
            b'{"type": "content_block_start", "content_block": {"type": "tool_use", "id": '
            + b"[" * 400
            + b"]" * 400
            + b"}}"
        ]
    )
    def test_streams_of_anthropic(self, events: list[bytes]) -> None:
        fold = anthropic_answer.MessageFold()
        try:
            for event in events:
                for chunk in fold.take(event):
                    assert orjson.loads(chunk)["choices"]
        except (NotTheProtocol, ErrorEvent):
            pass
        assert fold.usage.input_tokens >= 0


class TestServerSentEvents:
    @FEW
    @given(
        st.lists(
            st.binary(max_size=60) | st.sampled_from([b"data:", b"\n", b"\r", b"\r\n\r\n", b"data: x"]), max_size=30
        )
    )
    def test_any_bytes(self, pieces: list[bytes]) -> None:
        parser = EventParser(200)
        try:
            got = [event for piece in pieces for event in parser.feed(piece)] + parser.end()
        except TooLong:
            return
        assert sum(map(len, got)) <= sum(map(len, pieces))

    @pytest.mark.parametrize("line", [b"data:\n", b"data\n", b": x\n", b"data: x\n", b"\xef\xbb\xbf", b"x"])
    def test_an_event_that_never_ends_is_bounded(self, line: bytes) -> None:
        def feed() -> None:
            parser = EventParser(10_000)
            for _ in range(4_000):
                parser.feed(line * 200)

        assert _peak(feed, (TooLong,)) < 2_000_000


class TestBatchFiles:
    @FEW
    @given(raw, anything)
    def test_a_line(self, line: bytes, body: Any) -> None:
        whole = {"custom_id": "x", "method": "POST", "url": "/v1/chat/completions", "body": body}
        for text in (line, json.dumps(whole).encode("utf-8", "surrogatepass")):
            try:
                read_line(text, "/v1/chat/completions", CATALOG)
            except BadLine as bad:
                assert bad.error.fault == "caller", bad.error

    @FEW
    @given(st.binary(max_size=400), st.integers(1, 50))
    def test_any_bytes_are_lines(self, data: bytes, limit: int) -> None:
        at = 0
        for line in read_lines(io.BytesIO(data), limit):
            assert line.start >= at and (line.text is None or len(line.text) <= limit + 1)
            at = line.start + line.length
        assert at <= len(data)

    def test_a_line_without_an_end_is_never_held(self) -> None:
        class Endless(io.RawIOBase):
            left = 200_000_000

            def readline(self, size: int | None = -1, /) -> bytes:
                size = min(int(size or 0), self.left)
                self.left -= size
                return b"x" * size

        assert _peak(lambda: list(read_lines(Endless(), 1_000_000)), ()) < 5_000_000  # type: ignore[arg-type]


class TestForms:
    HEADERS = Headers({"content-type": "multipart/form-data; boundary=edge"})

    async def _read(self, pieces: list[bytes], headers: Headers = HEADERS) -> int:
        messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
        messages.append({"type": "http.request", "body": b"", "more_body": False})

        async def receive() -> dict[str, Any]:
            return messages.pop(0)

        return sum([len(piece) async for piece in Upload(receive, headers, limit_bytes=1_000_000)])

    @FEW
    @given(
        st.lists(
            st.binary(max_size=40)
            | st.sampled_from(
                [
                    b"--edge\r\n",
                    b"--edge--\r\n",
                    b"\r\n\r\n",
                    b"content-disposition: form-data; name=file; filename=x\r\n",
                    b'content-disposition: form-data; name="purpose"\r\n',
                    b"content-disposition: form-data; filename*=utf-8''%ff%00; name=file\r\n",
                    b"batch\r\n",
                    b"a: b\r\n",
                ]
            ),
            max_size=15,
        ),
        st.lists(st.integers(0, 300), max_size=6),
    )
    async def test_any_bytes(self, parts: list[bytes], cuts: list[int]) -> None:
        body = b"".join(parts)
        edges = sorted({0, len(body), *(cut for cut in cuts if cut < len(body))})
        try:
            await self._read([body[start:end] for start, end in pairwise(edges)])
        except FabricError as error:
            assert error.fault == "caller"

    @FEW
    @given(st.text(max_size=40).filter(lambda text: "\r" not in text and "\n" not in text) | st.just(""))
    async def test_any_boundary(self, boundary: str) -> None:
        kind = f"multipart/form-data; boundary={boundary}".encode("latin-1", "replace").decode("latin-1")
        try:
            await self._read([b"x"], Headers({"content-type": kind}))
        except FabricError as error:
            assert error.fault == "caller"

    @pytest.mark.parametrize("endless", [b"a", b"a: ", b"a: b\r\n", b"content-disposition: form-data; x=y\r\n"])
    async def test_headers_of_a_part_without_end_are_refused(self, endless: bytes) -> None:
        piece = endless * 20_000
        begin = b"--edge\r\n" + (b"a: " if endless == b"a: " else b"")
        with pytest.raises(InvalidRequest):
            await self._read([begin, *[piece] * 20])


class TestConfigurationFiles:
    @FEW
    @given(
        st.binary(max_size=80)
        | st.text(max_size=80).map(lambda text: text.encode("utf-8", "surrogatepass"))
        | anything.map(lambda value: yaml.safe_dump({"models": value, "rules": value}).encode("utf-8", "surrogatepass"))
    )
    @example(b"[" * 20_000)
    @example(b"{a: " * 5_000)
    @example(b"port: 2026-99-99")
    @example(b"port: !!int x")
    @example(b"port: !!float x")
    @example(b"port: !!timestamp x")
    @example(b"port: " + b"9" * 5_000)
    @example(b"? [a, b]\n: c")
    @example(b"a: &a [*a]")
    @example(b"models: &m\n  - name: x\n    deployments: *m")
    def test_any_bytes(self, tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
        path = tmp_path_factory.getbasetemp() / "any.yaml"
        path.write_bytes(data)
        try:
            document.read(path)
        except ConfigError as error:
            assert len(error.message) < 5_000

    def test_a_billion_laughs_are_none(self, tmp_path: Path) -> None:
        lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
        lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
        for last in ("models: *a9", "tenant_weights: *a9", "privacy: {public: *a9}"):
            path = tmp_path / "laughs.yaml"
            path.write_text("\n".join([*lines, last]))
            with pytest.raises(ConfigError):
                document.read(path)


def _peak(work: Callable[[], object], ends: tuple[type[Exception], ...]) -> int:
    """Bytes that are held at most while it works."""
    tracemalloc.start()
    try:
        work()
    except ends:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return peak
