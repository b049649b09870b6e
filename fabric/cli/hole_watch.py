"""Has the append-only file of the embedded Valkey written anew when a full disk has left a hole in it.

At the next start the hole would be taken out (``append_only.mend``). But a second full disk before that would cut off
as many bytes of what was answered as the hole has: Valkey cuts at where it believes that the file ends. All of it is
in Valkey's memory, and a rewrite makes a whole file of that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from fabric.store import append_only

LOOK_S = 1.0
#: How long a rewrite that failed is let be: it needs as much room again as the data.
_AGAIN_S = 10.0
_ANSWER_S = 5.0

Say = Callable[[str, str], None]  #: level and message


@dataclass(frozen=True, slots=True)
class _Look:
    """``refuses``: it takes no writes, as the last one failed."""

    refuses: bool
    hole: bool


async def keep_whole(socket: Path, folder: Path, say: Say, *, look_s: float = LOOK_S) -> None:
    """Until it is cancelled. ``folder``: the server's ``--dir``."""
    # Not redis.asyncio: cancelled in the middle of a call, it may answer with a time-out and go on.
    redis = Redis(unix_socket_path=str(socket), socket_timeout=_ANSWER_S)
    before = _Look(refuses=False, hole=False)
    try:
        while True:
            pause_s = look_s
            try:
                now = await asyncio.to_thread(_look, redis, folder)
                if now.refuses and not before.refuses:
                    say("ERROR", "its disk is full: it refuses all writes until there is room; no job is lost by that")
                elif before.refuses and not now.refuses:
                    say("INFO", "its disk has room: it writes again")
                if now.hole and not now.refuses:
                    if not before.hole:
                        say("WARNING", "its append-only file has a hole since the disk was full: it is written anew")
                    await asyncio.to_thread(redis.bgrewriteaof)
                    pause_s = _AGAIN_S
                before = _Look(now.refuses, now.hole and not now.refuses)
            except (RedisError, OSError):
                pass  # it is down, or files come and go under a rewrite: the next look tells
            await asyncio.sleep(pause_s)
    finally:
        redis.close()


def _look(redis: Redis, folder: Path) -> _Look:
    # The sizes first: they are never more than what Valkey believes them to be then, unless there is a hole.
    base, commands = append_only.sizes(folder)
    info = redis.info("persistence")
    refuses = info["aof_last_write_status"] != "ok"
    if info["aof_rewrite_in_progress"] or info["aof_rewrite_scheduled"]:
        return _Look(refuses, hole=False)  # nothing can be said, and need not
    # Of a new server's base, which holds nothing, it doesn't count the bytes.
    counted = base if info["aof_base_size"] else 0
    return _Look(refuses, hole=counted + commands > int(info["aof_current_size"]))
