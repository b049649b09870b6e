"""What the tests of the shipped model share: its metadata, and a llama.cpp server that runs it."""

from __future__ import annotations

import json
import struct
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import pytest
import xllamacpp

from fabric.settings.defaults import shipped_model

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@pytest.fixture(scope="session")
def header() -> dict[str, Any]:
    """The metadata of the shipped GGUF file (version 3, little endian)."""
    with shipped_model().open("rb") as file:
        assert file.read(4) == b"GGUF"
        version, _tensors, fields = struct.unpack("<IQQ", file.read(20))
        assert version == 3
        return {_string(file): _value(file, _number(file, "I")) for _ in range(fields)}


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _string(file)
    if kind == _ARRAY:
        of, count = _number(file, "I"), _number(file, "Q")
        return [_value(file, of) for _ in range(count)]
    return _number(file, _NUMBERS[kind])


def _string(file: BinaryIO) -> str:
    return file.read(_number(file, "Q")).decode()


def _number(file: BinaryIO, code: str) -> Any:
    return struct.unpack(f"<{code}", file.read(struct.calcsize(f"<{code}")))[0]


@dataclass
class LlamaCpp:
    """A llama.cpp server inside this process, on a free port of its own."""

    server: Any

    def post(self, path: str, **body: Any) -> Any:
        request = urllib.request.Request(
            self.server.listening_address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)

    def chat(self, *messages: str | dict[str, Any], temperature: float = 0.0, seed: int = 1) -> dict[str, Any]:
        """The choice that answers; a plain string is what the user says."""
        turns = [{"role": "user", "content": message} if isinstance(message, str) else message for message in messages]
        body = {"messages": turns, "temperature": temperature, "seed": seed, "max_tokens": 200}
        choice: dict[str, Any] = self.post("/v1/chat/completions", **body)["choices"][0]
        return choice

    def say(self, *messages: str | dict[str, Any], temperature: float = 0.0, seed: int = 1) -> str:
        return str(self.chat(*messages, temperature=temperature, seed=seed)["message"]["content"])


@pytest.fixture(scope="session")
def llama_cpp() -> Iterator[LlamaCpp]:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(shipped_model())
    parameters.n_ctx = 2048
    parameters.n_parallel = 2
    parameters.cpuparams.n_threads = 1
    parameters.warmup = False
    parameters.embedding = True
    yield LlamaCpp(xllamacpp.Server(parameters))
