"""Runs a command that must not outlive the worker, whatever becomes of the worker.

    python -I -S leash.py GRACE_S COMMAND [ARGUMENT…]  <pipe-from-the-worker

The command gets a process group of its own. When the pipe on standard input closes (the worker let go,
or died in whatever way), the group gets SIGTERM, and after the grace SIGKILL. Ends with the command's
status, after the rest of its group: an engine that crashed leaves no process that holds the GPU.
"""

import os
import signal
import subprocess
import sys
import threading
import time

#: How long the dead may take to be buried: a container without an init process never does.
_REST_S = 2.0


def main(grace_s: float, command: list[str]) -> int:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # They are meant for the worker, and it lets go in its own time. Handlers, unlike what is ignored,
        # are not inherited by the command.
        signal.signal(number, lambda *_: None)
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    except OSError as error:
        print(f"error: can't run {command[0]}: {error.strerror}", file=sys.stderr)
        return 127
    threading.Thread(target=_end_with_the_pipe, args=(child, grace_s), daemon=True).start()
    status = child.wait()
    give_up = time.monotonic() + _REST_S
    while _signal(child.pid, signal.SIGKILL) and time.monotonic() < give_up:
        time.sleep(0.02)
    return status if status >= 0 else 128 - status


def _end_with_the_pipe(child: "subprocess.Popen[bytes]", grace_s: float) -> None:
    while os.read(0, 4096):
        pass
    _signal(child.pid, signal.SIGTERM)
    time.sleep(grace_s)
    _signal(child.pid, signal.SIGKILL)


def _signal(group: int, number: int) -> bool:
    """Whether anybody was there to get it."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
