"""Reads a ``multipart/form-data`` body as it comes: its fields are kept, its file is passed on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers
from starlette.types import Receive

from fabric.contracts.errors import InvalidRequest, TooLarge
from fabric.gateway.body import ClientGone, UnsupportedMediaType

_PURPOSE = "batch"
#: What a form may hold besides its file.
_FORM_BYTES = 65_536
_FILENAME_CHARS = 255
_PARTS = 16


class Upload:
    """``async for piece in upload`` gives the file's bytes; it ends well only when the whole form is right."""

    def __init__(self, receive: Receive, headers: Headers, *, limit_bytes: int) -> None:
        """
        Raises:
            UnsupportedMediaType: not a form with a file.
            TooLarge: by its declared length.
        """
        kind, options = parse_options_header(headers.get("content-type"))
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            raise UnsupportedMediaType("Send the file as `multipart/form-data`, with the fields `file` and `purpose`.")
        declared = headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > limit_bytes + _FORM_BYTES:
            raise TooLarge(f"The file has more than {limit_bytes:,} bytes; split it.", param="file")
        self.filename = ""
        self._receive = receive
        self._form = _Form()
        try:
            self._parser = MultipartParser(options[b"boundary"], self._form.callbacks())
        except FormParserError:
            raise _unreadable() from None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """
        Raises:
            InvalidRequest: the form can't be read, or isn't the form of a file.
            ClientGone: the client left before the end.
        """
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            more = message.get("more_body", False)
            try:
                self._parser.write(message.get("body", b""))
            except FormParserError:
                raise _unreadable() from None
            if piece := self._form.take():
                yield piece
        self.filename = self._form.finish()


def _unreadable() -> InvalidRequest:
    return InvalidRequest("The form can't be read: it isn't valid `multipart/form-data`, or it is cut short.")


class _Form:
    """What the parser tells, kept as far as it is needed."""

    def __init__(self) -> None:
        self._purpose: bytes | None = None
        self._filename: str | None = None
        self._file: list[bytes] = []
        self._parts = 0
        self._ended = False
        self._headers: dict[bytes, bytes] = {}
        self._header = b""
        self._value = b""
        self._name = ""

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._part_begins,
            "on_header_field": self._header_name,
            "on_header_value": self._header_value,
            "on_header_end": self._header_ends,
            "on_headers_finished": self._headers_end,
            "on_part_data": self._data,
            "on_part_end": self._part_ends,
            "on_end": self._ends,
        }

    def take(self) -> bytes:
        """What came of the file since the last call."""
        piece = self._file[0] if len(self._file) == 1 else b"".join(self._file)
        self._file.clear()
        return piece

    def finish(self) -> str:
        """The file's name, once everything has been read."""
        if not self._ended:
            raise _unreadable()
        if self._filename is None:
            raise _missing("file")
        if self._purpose is None:
            raise _missing("purpose")
        return self._filename

    def _part_begins(self) -> None:
        self._parts += 1
        if self._parts > _PARTS:
            raise InvalidRequest("The form has too many parts; it takes `file` and `purpose`.")
        self._headers = {}
        self._value = b""

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_ends(self) -> None:
        self._headers[self._header.lower()] = self._value
        self._header = self._value = b""

    def _headers_end(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        filename = options.get(b"filename")
        if self._name == "file":
            if filename is None:
                raise InvalidRequest("`file` must be a file: give it a `filename`.", param="file")
            if self._filename is not None:
                raise InvalidRequest("One file at a time: `file` is there twice.", param="file")
            self._filename = filename.decode("utf-8", "replace")[:_FILENAME_CHARS]
        elif self._name != "purpose":
            name = self._name[:64]
            raise InvalidRequest(f"Unknown parameter: `{name}`.", param=name, code="unknown_parameter")

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._name == "file":
            self._file.append(data[start:end])
        elif len(self._value) + end - start > _FORM_BYTES:
            raise InvalidRequest(f"`{self._name}` is too long.", param=self._name)
        else:
            self._value += data[start:end]

    def _part_ends(self) -> None:
        if self._name == "purpose":
            self._purpose = self._value
            if self._purpose != _PURPOSE.encode():
                raise InvalidRequest(f"`purpose` must be `{_PURPOSE}`.", param="purpose", code="invalid_value")

    def _ends(self) -> None:
        self._ended = True


def _missing(name: str) -> InvalidRequest:
    return InvalidRequest(f"Missing required parameter: `{name}`.", param=name, code="missing_required_parameter")
