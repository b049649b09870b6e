"""llama.cpp's HTTP server as a process of its own.

    python -I child.py PARENT_PID    settings as a line of JSON on stdin

Writes ``ready`` on stdout when requests can come. Runs until stdin ends: it doesn't outlive its parent.
Imports nothing of ours, so that it starts in a tenth of a second.
"""

import ctypes
import json
import os
import shutil
import signal
import sys
from pathlib import Path

# Some event loops leave the parent's ends of our pipes open in us: then no pipe would ever end.
os.closerange(3, 4096)

import xllamacpp  # noqa: E402

_PR_SET_PDEATHSIG = 1

#: Parameters that llama.cpp counts, and how their names here become its own.
_ENUMS = {
    "cache_type_k": (xllamacpp.ggml_type, "GGML_TYPE_"),
    "cache_type_v": (xllamacpp.ggml_type, "GGML_TYPE_"),
    "load_mode": (xllamacpp.llama_load_mode, "LLAMA_LOAD_MODE_"),
    "pooling_type": (xllamacpp.llama_pooling_type, "LLAMA_POOLING_TYPE_"),
    "flash_attn_type": (xllamacpp.llama_flash_attn_type, "LLAMA_FLASH_ATTN_TYPE_"),
}
_SWITCH = {"on": "ENABLED", "off": "DISABLED"}


def main(parent: int) -> None:
    if sys.platform == "linux":
        # Its stdin ends with the parent too, but nobody can look there while the model loads.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            return
    settings = json.loads(sys.stdin.readline())
    socket = Path(settings["socket"])
    params = xllamacpp.CommonParams()
    params.hostnames = [str(socket)]
    for name, value in settings["params"].items():
        _set(params, name, value)
    try:
        server = xllamacpp.Server(params)
    except RuntimeError:  # llama.cpp has said why
        sys.exit(1)

    def leave(*_: object) -> None:
        shutil.rmtree(socket.parent, ignore_errors=True)
        # An orderly end would wait for answers that nobody reads any more.
        os._exit(0 if server else 1)

    # llama.cpp's own handlers end the server and leave the process behind.
    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)
    print("ready", flush=True)
    # From here on, messages could quote requests.
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    os.dup2(null, 2)
    while os.read(0, 4096):
        pass
    leave()


def _set(params: "xllamacpp.CommonParams", name: str, value: "str | int | float") -> None:
    *path, last = name.split(".")
    for step in path:
        params = getattr(params, step)
    if name in _ENUMS:
        kind, prefix = _ENUMS[name]
        value = kind[prefix + _SWITCH.get(str(value), str(value).upper())]
    setattr(params, last, value)


if __name__ == "__main__":
    main(int(sys.argv[1]))
