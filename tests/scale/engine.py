"""An OpenAI-compatible engine on one machine's loopback, which keeps a log of its own:

    python engine.py PORT LOG LATENCY_S

A line for each request that it begins: what it was asked. Nothing of the fabric is imported here: the log says
what really ran.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

ANSWER = json.dumps(
    {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }
).encode()
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"


async def main(port: int, path: Path, latency_s: float) -> None:
    with path.open("a", buffering=1) as log:

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                while True:
                    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                    body = await reader.readexactly(int(head.partition("content-length:")[2].partition("\r\n")[0]))
                    print(json.loads(body)["messages"][-1]["content"], file=log)
                    await asyncio.sleep(latency_s)
                    writer.write(HEAD % len(ANSWER) + ANSWER)
                    await writer.drain()
            except (asyncio.IncompleteReadError, ConnectionError):
                writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", port)
        print("listening", flush=True)
        async with server:
            await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])))
