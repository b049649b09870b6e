"""Crashes of everything at any point: each line comes out exactly once, whatever dies."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Connection

from fabric.batches.lease import Lease
from fabric.ledger import Ledger
from fabric.ledger.batches import Batch
from fabric.store import Command, Store

if TYPE_CHECKING:
    from tests.batches.conftest import Desk, Worker
    from tests.conftest import Postgres, Valkey

MIXED = 2_000


def mixed(line: Any, count: int = MIXED) -> list[Any]:
    """Most are answered, some are refused by the engine, some can't be read."""
    return [
        b'{"custom_id": "c%d", "no": "request"}' % n if n % 97 == 5 else line(f"c{n}", "fail" if n % 31 == 7 else "hi")
        for n in range(count)
    ]


def assert_all_once(desk: Desk, batch_id: str, count: int = MIXED) -> None:
    batch = desk.found(batch_id)
    answers, errors = desk.output(batch_id), desk.errors(batch_id)
    found = Counter(line["custom_id"] for line in answers + errors)
    assert found == Counter(f"c{n}" for n in range(count))
    assert (batch.total, batch.completed, batch.failed) == (count, len(answers), len(errors))
    numbers = [error["error"]["line"] for error in errors]
    assert numbers == sorted(numbers)
    assert {int(error["custom_id"][1:]) + 1 for error in errors} == set(numbers)


def midway(desk: Desk, batch_id: str, goal: int) -> None:
    """Waits until that many lines are answered; many are not."""

    def look() -> Batch | None:
        batch = desk.found(batch_id)
        return batch if batch.completed >= goal else None

    assert desk.until(look).open > 100


#: One step, as a store that comes back has lost the same moment everywhere.
ALL_BUT_THE_MARK = """
for _, key in ipairs(redis.call('KEYS', 'fabric:*')) do
  if key ~= 'fabric:batches:mark' then redis.call('DEL', key) end
end
"""


class Killed(BaseException):
    """Where a process was killed. Nothing catches it."""


class Fuse:
    """Kills whoever makes the call after which it is burnt down."""

    def __init__(self) -> None:
        self.left = 0

    def burn(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed


class FusedStore(Store):
    def __init__(self, url: str, fuse: Fuse) -> None:
        super().__init__(url)
        self._fuse = fuse

    def __call__(self, command: Command[Any]) -> Any:
        self._fuse.burn()
        answer = super().__call__(command)
        self._fuse.burn()
        return answer


class FusedLedger(Ledger):
    def __init__(self, url: str, fuse: Fuse) -> None:
        super().__init__(url)
        self._fuse = fuse

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        self._fuse.burn()
        with super().writing() as connection:
            yield connection
            self._fuse.burn()
        self._fuse.burn()


@pytest.mark.parametrize("seed", range(8))
def test_killed_at_any_call(desk: Desk, worker: Worker, line: Any, seed: int) -> None:
    """Recorder and service are killed before, inside and after calls of theirs, and begin anew with nothing."""
    dice = random.Random(seed)
    fuse = Fuse()
    store = FusedStore(desk.url, fuse)
    ledger = FusedLedger(desk.database_url, fuse)
    desk.ledger, whole = ledger, desk.ledger
    batch_id = desk.batch(mixed(line, 400))
    worker.start()
    kills = 0

    def live() -> bool:
        """One life; answers whether the batch has ended."""
        nonlocal kills
        fuse.left = dice.randint(1, 40)
        service, recorder = desk.service(store, window=100, term_ms=20), desk.recorder(store, takeover_ms=0)
        try:
            while True:
                (service.round if dice.random() < 0.6 else recorder.step)()
        except Killed:
            kills += 1
        fuse.left = 0
        desk.ledger, fused = whole, desk.ledger
        ended = desk.found(batch_id).status == "completed"
        desk.ledger = fused
        return ended

    desk.until(live)
    desk.ledger = whole
    assert kills > 5
    assert_all_once(desk, batch_id, 400)
    store.close()
    ledger.close()


class TestServices:
    def test_two_at_once(self, each_desk: Desk, worker: Worker, line: Any) -> None:
        worker.start()
        with each_desk.serving(), each_desk.serving():
            batch_id = each_desk.batch(mixed(line))
            each_desk.wait(batch_id)
        assert_all_once(each_desk, batch_id)

    def test_two_that_both_believe_to_be_the_only_one(
        self, each_desk: Desk, worker: Worker, line: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Lease, "hold", lambda _: True)
        worker.start()
        with each_desk.serving(window=300), each_desk.serving(window=300):
            ids = [each_desk.batch(mixed(line, 700)) for _ in range(2)]
            for batch_id in ids:
                each_desk.wait(batch_id)
        for batch_id in ids:
            assert_all_once(each_desk, batch_id, 700)

    def test_the_next_one_takes_over(self, desk: Desk, worker: Worker, line: Any) -> None:
        """The first holds the lease and hangs."""
        worker.start()
        hanging = Lease(desk.store, term_ms=300)
        assert hanging.hold()
        with desk.serving():
            assert desk.wait(desk.batch([line("c0")])).status == "completed"


def test_killed_processes(
    desk: Desk, worker: Worker, line: Any, recorder_process: Callable[[], subprocess.Popen[bytes]]
) -> None:
    """Two real processes at work; one of them is killed again and again."""
    worker.chunk = 16
    worker.start()
    batch_id = desk.batch(mixed(line))
    processes = [recorder_process(), recorder_process()]
    for goal in (100, 1_000):
        midway(desk, batch_id, goal)
        killed = processes.pop(0)
        killed.kill()
        killed.wait()
        processes.append(recorder_process())
    desk.wait(batch_id)
    for process in processes:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert_all_once(desk, batch_id)


@pytest.fixture
def recorder_process(desk: Desk, tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Starts ``fabric recorder``."""
    config = tmp_path / "fabric.yaml"
    config.write_text("models: [{name: small, deployments: [{engine: mock, tier: cpu}]}]\n")
    environ = {
        **os.environ,
        "FABRIC_REDIS_URL": desk.url,
        "FABRIC_DATABASE_URL": desk.database_url,
        "FABRIC_FILES_DIR": str(desk.storage.directory),
        "FABRIC_SECRET": "s" * 32,  # as the desk's
        "FABRIC_DATA_DIR": str(tmp_path / "data"),
    }
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "fabric.cli", "recorder", "--config", str(config)]
        started.append(subprocess.Popen(command, env=environ, cwd=Path(__file__).parents[2]))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


class TestStore:
    def test_killed_and_started_again(self, desk: Desk, worker: Worker, line: Any, valkey: Valkey) -> None:
        worker.chunk = 16
        worker.start()
        with desk.serving():
            batch_id = desk.batch(mixed(line))
            for goal in (200, 1_000):
                midway(desk, batch_id, goal)
                valkey.kill()
                valkey.start()
            desk.wait(batch_id)
        assert_all_once(desk, batch_id)

    def test_emptied(self, each_desk: Desk, worker: Worker, line: Any) -> None:
        desk = each_desk
        worker.chunk = 16
        worker.start()
        with desk.serving(window=500):
            batch_id = desk.batch(mixed(line))
            for goal in (200, 1_000):
                midway(desk, batch_id, goal)
                desk.store.redis.flushall()
            desk.wait(batch_id)
        assert_all_once(desk, batch_id)

    def test_back_without_its_newest_writes(self, desk: Desk, worker: Worker, line: Any) -> None:
        """The mark is older than what was lost: only the jobs themselves show it."""
        worker.chunk = 16
        worker.start()
        with desk.serving(window=500):
            batch_id = desk.batch(mixed(line))
            midway(desk, batch_id, 200)
            desk.store.redis.eval(ALL_BUT_THE_MARK, 0)
            desk.wait(batch_id)
        assert_all_once(desk, batch_id)


class TestLedger:
    def test_locked_for_a_while(self, desk: Desk, worker: Worker, line: Any, caplog: pytest.LogCaptureFixture) -> None:
        impatient = Ledger(desk.database_url, wait_s=0.1)
        desk.ledger, patient = impatient, desk.ledger
        worker.chunk = 16
        worker.start()
        with desk.serving():
            batch_id = desk.batch(mixed(line))
            midway(desk, batch_id, 200)
            with patient.writing():
                desk.until(lambda: "completions wait" in caplog.text)
            desk.wait(batch_id)
        assert_all_once(desk, batch_id)
        impatient.close()

    def test_crashed_and_started_again(
        self, make_desk: Callable[[str], Desk], postgres: Postgres, postgres_ledger: str, worker: Worker, line: Any
    ) -> None:
        desk = make_desk(postgres_ledger)
        worker.chunk = 16
        worker.start()
        with desk.serving():
            batch_id = desk.batch(mixed(line))
            midway(desk, batch_id, 200)
            postgres.crash()
            postgres.start()
            desk.wait(batch_id)
        assert_all_once(desk, batch_id)
