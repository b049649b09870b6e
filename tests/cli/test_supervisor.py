"""The supervisor, with small programs in place of the fabric's."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from fabric.cli.child import Backoff, Program
from fabric.cli.journal import Journal
from fabric.cli.supervisor import Supervisor
from fabric.contracts.errors import ConfigError, FabricError

QUICK = Backoff(first_s=0.01, limit_s=0.04, stable_s=60)
SLEEP = ("sleep", "300")


class Run:
    """A supervisor whose log is a string, and a way to wait for what it does."""

    def __init__(self, folder: Path, backoff: Backoff) -> None:
        self.output = io.StringIO()
        self.journal = Journal(folder / "fabric.log", self.output, level="DEBUG")
        self._changed = asyncio.Event()
        self.supervisor = Supervisor(self.journal, os.environ, backoff=backoff, changed=self._changed.set)

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not true():
                self._changed.clear()
                await self._changed.wait()

    async def pid(self, name: str, *, other_than: int | None = None) -> int:
        child = self.supervisor.children[name]
        await self.until(lambda: child.pid not in (None, other_than))
        assert child.pid is not None
        return child.pid

    def log(self) -> str:
        self.journal.close()
        return self.output.getvalue()


@asynccontextmanager
async def running(folder: Path, backoff: Backoff = QUICK) -> AsyncIterator[Run]:
    run = Run(folder, backoff)
    try:
        yield run
    finally:
        run.supervisor.kill()
        await run.supervisor.stop(list(run.supervisor.children))


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-I", "-S", "-c", code)


async def test_a_killed_program_starts_again(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        run.supervisor.start(Program("sleeper", SLEEP))
        first = await run.pid("sleeper")
        os.kill(first, signal.SIGKILL)
        second = await run.pid("sleeper", other_than=first)
        assert psutil.pid_exists(second)
        assert run.supervisor.children["sleeper"].restarts == 1
    assert "sleeper      WARNING was killed by SIGKILL; starts again in 0.01 s" in run.log()


async def test_what_a_program_left_behind_ends_with_it(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        run.supervisor.start(Program("parent", ("sh", "-c", "sleep 300 & wait")))
        first = await run.pid("parent")
        async with asyncio.timeout(5):
            while not (grandchildren := psutil.Process(first).children()):
                await asyncio.sleep(0.01)
        os.kill(first, signal.SIGKILL)
        await run.pid("parent", other_than=first)
        gone, _ = psutil.wait_procs(grandchildren, timeout=5)
        assert gone == grandchildren


async def test_restarts_come_later_and_later(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        child = run.supervisor.start(Program("failing", ("false",)))
        await run.until(lambda: child.restarts >= 4)
    delays = [line.rsplit(" in ")[1] for line in run.log().splitlines() if "starts again" in line]
    assert delays[:4] == ["0.01 s", "0.02 s", "0.04 s", "0.04 s"]


def test_the_wait_doubles_up_to_its_limit() -> None:
    backoff = Backoff()
    assert [backoff.delay(n) for n in (1, 2, 3, 6, 7, 1000)] == [0.2, 0.4, 0.8, 6.4, 10.0, 10.0]


async def test_a_stable_program_starts_afresh(tmp_path: Path) -> None:
    async with running(tmp_path, Backoff(first_s=0.01, limit_s=10, stable_s=0)) as run:
        child = run.supervisor.start(Program("failing", ("false",)))
        await run.until(lambda: child.restarts >= 4)
        assert child.failures == 1


async def test_a_configuration_error_ends_it_with_the_programs_own_words(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        complaint = "echo noise; echo 'error: no such model file'; echo 'hint: make one'; exit 78"
        run.supervisor.start(Program("sleeper", SLEEP))
        run.supervisor.start(Program("worker", ("sh", "-c", complaint)))
        with pytest.raises(ConfigError) as caught:
            await asyncio.wait_for(run.supervisor.failed(), 10)
        assert caught.value.message == "worker can't run as configured. no such model file\nhint: make one"
        await run.pid("sleeper")


async def test_a_program_that_was_stable_gets_a_few_tries(tmp_path: Path) -> None:
    first_time = f"test -e {tmp_path}/ran || {{ touch {tmp_path}/ran; sleep 0.5; exit 1; }}; exit 78"
    async with running(tmp_path, Backoff(first_s=0.01, stable_s=0.5, config_errors=3)) as run:
        child = run.supervisor.start(Program("worker", ("sh", "-c", first_time)))
        with pytest.raises(ConfigError):
            await asyncio.wait_for(run.supervisor.failed(), 10)
        assert child.restarts == 4
    assert run.log().count("ended with status 78; starts again") == 3


async def test_stop_waits_for_the_program_to_finish(tmp_path: Path) -> None:
    finished = tmp_path / "finished"
    code = (
        "import signal, sys, time\n"
        f"def end(*_): time.sleep(0.2); open({str(finished)!r}, 'w').close(); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "print('INFO up', flush=True)\n"
        "while True: signal.pause()\n"
    )
    async with running(tmp_path) as run:
        run.supervisor.start(Program("careful", python(code)))
        async with asyncio.timeout(10):
            while "up" not in run.output.getvalue():
                await asyncio.sleep(0.01)
        await run.supervisor.stop(["careful"])
        assert finished.exists()
        assert run.supervisor.children["careful"].pid is None
    assert "starts again" not in run.log()


async def test_stop_kills_what_outlives_its_grace(tmp_path: Path) -> None:
    stubborn = "trap '' TERM; echo INFO deaf; while :; do sleep 1; done"
    async with running(tmp_path) as run:
        run.supervisor.start(Program("stubborn", ("sh", "-c", stubborn), grace_s=0.2))
        async with asyncio.timeout(10):
            while "deaf" not in run.output.getvalue():
                await asyncio.sleep(0.01)
        pid = await run.pid("stubborn")
        await run.supervisor.stop(["stubborn"])
        assert not psutil.pid_exists(pid)
    assert "didn't stop within 0.2 s and is killed" in run.log()


async def test_stop_ends_a_wait_between_two_starts(tmp_path: Path) -> None:
    async with running(tmp_path, Backoff(first_s=300, limit_s=300)) as run:
        child = run.supervisor.start(Program("failing", ("false",)))
        await run.until(lambda: child.failures == 1 and child.pid is None)
        await asyncio.wait_for(run.supervisor.stop(["failing"]), 5)
        assert child.restarts == 0


async def test_run_raises_what_the_program_said(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        await run.supervisor.run(Program("fine", ("true",)))
        with pytest.raises(FabricError, match=r"migrate failed\. the disk is full"):
            await run.supervisor.run(Program("migrate", ("sh", "-c", "echo 'error: the disk is full' >&2; exit 1")))
        with pytest.raises(ConfigError, match="no such database"):
            await run.supervisor.run(Program("migrate", ("sh", "-c", "echo 'error: no such database'; exit 78")))


async def test_a_command_that_is_not_there_says_so(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        with pytest.raises(FabricError, match="can't run /no/such/program: No such file"):
            await run.supervisor.run(Program("odd", ("/no/such/program",)))


async def test_open_files_are_handed_on_by_number(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    async with running(tmp_path) as run:
        code = f"import os; os.write({write_end}, b'here')"
        await run.supervisor.run(Program("writer", python(code), fds=(write_end,)))
    os.close(write_end)
    with os.fdopen(read_end) as reader:
        assert reader.read() == "here"


async def test_output_of_any_shape_comes_through(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "o = sys.stdout.buffer\n"
        "o.write(b'\\xff not utf-8\\n'); o.write(b'x' * 100_000); o.write(b'\\nWARNING last, without an end')\n"
    )
    async with running(tmp_path) as run:
        await run.supervisor.run(Program("odd", python(code)))
    lines = run.log().splitlines()
    assert lines[0].endswith("odd          INFO    \ufffd not utf-8")
    assert lines[-1].endswith("odd          WARNING last, without an end")
    assert max(map(len, lines)) < 10_000


SUPERVISE = """
import asyncio, io, os, sys
from pathlib import Path
from fabric.cli.child import Program
from fabric.cli.journal import Journal
from fabric.cli.supervisor import Supervisor

async def main():
    journal = Journal(Path(sys.argv[1]) / "fabric.log", sys.stderr)
    changed = asyncio.Event()
    supervisor = Supervisor(journal, os.environ, changed=changed.set)
    children = [supervisor.start(Program(name, ("sleep", "300"))) for name in ("one", "two")]
    while not all(child.pid for child in children):
        await changed.wait()
        changed.clear()
    print(*(child.pid for child in children), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of their parent's death")
def test_a_killed_supervisor_leaves_no_orphans(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SUPERVISE, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        children = [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
        assert len(children) == 2
        process.kill()
    _, alive = psutil.wait_procs(children, timeout=5)
    assert alive == []
