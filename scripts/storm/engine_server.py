"""An inference server on loopback that writes down what it does: ``python -m storm.engine_server PORT LOG LATENCY_S``.

A process of its own, so that it can be killed in mid-stream. It stands for a hosted API, and for a server of the
operator's own. The log has one JSON object a line, written before the first and before the last byte of an answer;
what is in it survives kill -9.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import uvicorn

from storm.asks import answer_words, asked, doomed, slow, tokens

#: Tries that fail of a request that is doomed: as many as a place is given.
_FAILURES = 3
_SLOW_S = 4.0


class EngineServer:
    """The ASGI application."""

    def __init__(self, log: Path, latency_s: float) -> None:
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._latency_s = latency_s
        self._tries: Counter[int] = Counter()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        content = b""
        while True:
            message = await receive()
            content += message.get("body", b"")
            if not message.get("more_body"):
                break
        if scope["method"] != "POST":
            await _reply(send, json.dumps({"object": "list", "data": []}).encode())
            return
        body = json.loads(content)
        text = body["messages"][-1]["content"]
        n, _ = asked(text) or (0, "")
        generation = f"g{secrets.token_hex(6)}"
        self._note(event="began", generation=generation, ask=n, received=content.decode())
        self._tries[n] += 1
        if doomed(n) and self._tries[n] <= _FAILURES:
            await _reply(send, b'{"error": {"message": "not yet", "type": "server_error"}}', 500)
            return
        await asyncio.sleep(_SLOW_S if slow(n) and self._tries[n] == 1 else 0.0)
        if body.get("stream"):
            await self._stream(send, n, generation)
        else:
            await asyncio.sleep(self._latency_s)
            self._answered(n, generation)
            message = {"role": "assistant", "content": " ".join(answer_words(n, generation))}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            values = {"object": "chat.completion", "created": 1, "choices": [choice], "usage": _usage(n)}
            await _reply(send, json.dumps(values).encode())

    async def _stream(self, send: Any, n: int, generation: str) -> None:
        head = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
        await send(head)
        words = answer_words(n, generation)
        for i, word in enumerate(words):
            await asyncio.sleep(self._latency_s / len(words))
            delta = {"content": word if i == 0 else f" {word}"}
            await _say(send, [{"index": 0, "delta": delta, "finish_reason": None}])
        await _say(send, [{"index": 0, "delta": {}, "finish_reason": "stop"}])
        self._answered(n, generation)
        await _say(send, [], usage=_usage(n))
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    def _answered(self, n: int, generation: str) -> None:
        prompt, completion = tokens(n)
        self._note(event="answered", generation=generation, ask=n, prompt=prompt, completion=completion)

    def _note(self, **values: Any) -> None:
        os.write(self._log, json.dumps({"at": time.time(), **values}).encode() + b"\n")


def _usage(n: int) -> dict[str, int]:
    prompt, completion = tokens(n)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


async def _say(send: Any, choices: list[Any], **more: Any) -> None:
    chunk = {"object": "chat.completion.chunk", "created": 1, "choices": choices, **more}
    await send({"type": "http.response.body", "body": b"data: %b\n\n" % json.dumps(chunk).encode(), "more_body": True})


async def _reply(send: Any, body: bytes, status: int = 200) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


if __name__ == "__main__":
    _, port, log, latency_s = sys.argv
    server = EngineServer(Path(log), float(latency_s))
    uvicorn.run(server, host="127.0.0.1", port=int(port), log_level="warning", lifespan="off", loop="uvloop")
