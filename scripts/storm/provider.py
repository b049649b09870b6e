"""A provider with a batch API on loopback: ``python -m storm.provider PORT LOG HOLD_S``.

OpenAI's protocol as the tests play it, and a log of what was answered. A batch is answered ``HOLD_S`` after it was
made. It remembers everything, and so is never killed.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import sys
import time
from pathlib import Path
from typing import Any

from storm.asks import answer_words, asked, tokens
from tests.workers.engines.fake_batches import FakeBatches, Made


class Provider(FakeBatches):
    def __init__(self, port: int, log: Path, hold_s: float) -> None:
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._hold_s = hold_s
        self._generations: dict[tuple[str, str], str] = {}
        super().__init__(port)

    def _make(self, asked_for: dict[str, Any]) -> Made:
        made = super()._make(asked_for)
        for custom_id, body in made.requests.items():
            self._begin(made.id, custom_id, body)
        return made

    def _state(self, made: Made) -> str:
        if made.status == "in_progress" and time.time() > made.created + self._hold_s:
            made.status = "completed"
            for custom_id, body in made.requests.items():
                self._end(made.id, custom_id, body)
        return made.status

    def _content(self, file: str) -> bytes:
        batch = file.partition("-")[2]
        self.answer = lambda custom_id, body: {
            "status_code": 200,
            "request_id": "req_1",
            "body": _completion(_number(body), self._generations[batch, custom_id]),
        }
        return super()._content(file)

    def _answer(self, method: str, path: str, body: bytes, kind: str) -> Any:
        if path.strip("/") != "chat/completions":
            return super()._answer(method, path, body, kind)
        asked_for = json.loads(body)
        call = secrets.token_hex(6)
        self._begin("sync", call, asked_for)
        self._end("sync", call, asked_for)
        return _completion(_number(asked_for), self._generations["sync", call])

    def _begin(self, batch: str, custom_id: str, body: dict[str, Any]) -> None:
        generation = self._generations[batch, custom_id] = f"g{secrets.token_hex(6)}"
        self._note(event="began", generation=generation, ask=_number(body), received=json.dumps(body), batch=batch)

    def _end(self, batch: str, custom_id: str, body: dict[str, Any]) -> None:
        n = _number(body)
        prompt, completion = tokens(n)
        generation = self._generations[batch, custom_id]
        self._note(event="answered", generation=generation, ask=n, prompt=prompt, completion=completion)

    def _note(self, **values: Any) -> None:
        os.write(self._log, json.dumps({"at": time.time(), **values}).encode() + b"\n")


def _number(body: dict[str, Any]) -> int:
    return (asked(body["messages"][-1]["content"]) or (0, ""))[0]


def _completion(n: int, generation: str) -> dict[str, Any]:
    prompt, completion = tokens(n)
    message = {"role": "assistant", "content": " ".join(answer_words(n, generation))}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [choice],
        "usage": usage,
    }


if __name__ == "__main__":
    _, port, log, hold_s = sys.argv
    provider = Provider(int(port), Path(log), float(hold_s))
    signal.pause()
