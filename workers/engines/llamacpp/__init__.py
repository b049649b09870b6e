"""llama.cpp on this machine's processors, as a child process that speaks HTTP on a unix socket.

    engine.py    the engine: starts the server, runs requests, one coroutine each
    options.py   what a deployment may set, and the server parameters that follow from it
    machine.py   cores and memory of this machine
    child.py     the program that is llama.cpp's server (no import of ours)
    server.py    keeps that program running
    http.py      one request to it, and how to call one off
    request.py   an OpenAI body -> llama.cpp's requests       (pure)
    answer.py    llama.cpp's answers -> OpenAI's              (pure)
    failures.py  llama.cpp's errors -> the fabric's           (pure)
    seats.py     who may use a slot next

Why a child: an assertion that fails in llama.cpp, or the kernel short of memory, ends the child and
not the worker with all its jobs; loading holds no lock of ours; what it used is free when it is gone.
Why HTTP and not the in-process calls: those take a thread for every request and can't be called off.
"""

from workers.engines.llamacpp.engine import LlamaCppEngine

__all__ = ["LlamaCppEngine"]
