"""Two workers on machines of their own, before one store and one broker: they join, leave, die, and are cut off.

What ran is taken from the engines' own logs and held against the ledger.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.broker.conftest import Process
    from tests.scale.conftest import Site

#: Longer than the 5 s after which a silent worker is dead. FABRIC_TEST_CUT_S=30 cuts for half a minute.
CUT_S = float(os.environ.get("FABRIC_TEST_CUT_S", "8"))
#: A second of work for both workers, or more.
JOBS = 80
pytestmark = pytest.mark.timeout(240 + CUT_S)


def id_of(site: Site, process: Process) -> str:
    info = site.fabric.info(process)
    assert info is not None
    return info.id


def under_load(site: Site, *workers: Process) -> None:
    """Waits until each has jobs in hand and has finished some."""
    before = [machine.ran.total() for machine in site.machines]
    for worker, machine, count in zip(workers, site.machines, before, strict=True):
        held = f"fabric:held:{id_of(site, worker)}"
        site.fabric.until(lambda m=machine, c=count: m.ran.total() > c + 8)
        site.fabric.until(lambda h=held: site.fabric.store.redis.scard(h) >= 4)


def is_gone(site: Site, process: Process, slots: int) -> None:
    """From all that shows workers. ``slots``: of those that are left."""
    site.fabric.until(lambda: process.popen.pid not in site.shown())
    site.fabric.until(lambda: site.slots() == slots)
    assert f"  {process.popen.pid}  " not in site.status()


def nothing_lost(site: Site, jobs: list[str], dead: str | None = None) -> None:
    """All succeeded, once each. What an engine began twice is what worker ``dead`` had when it was lost."""
    for job, rows in site.rows(jobs).items():
        assert [row.attempt for row in rows] == sorted({row.attempt for row in rows})
        assert [row.state for row in rows].count("succeeded") == 1
        assert rows[-1].state == "succeeded"
        lost = [row for row in rows if row.error_code == "worker_lost"]
        assert {row.worker for row in lost} <= {dead}
        assert 1 <= site.ran(job) <= 1 + len(lost), f"{job} ran {site.ran(job)} times; {len(lost)} attempts were lost"


def test_a_worker_joins_by_starting(site: Site) -> None:
    first, second = site.machines
    one = site.worker(first)
    jobs = site.ask(JOBS)
    other = site.worker(second)
    jobs += site.ask(JOBS)
    nothing_lost(site, jobs)
    assert all(any(machine.ran[site.contents[job]] for job in jobs) for machine in site.machines)
    # Each by its own address.
    seen = {client["addr"].rpartition(":")[0] for client in site.fabric.store.redis.client_list()}
    assert {machine.address for machine in site.machines} <= seen
    assert site.shown() == {one.popen.pid, other.popen.pid}
    assert site.slots() == 16
    assert all(f"  {process.popen.pid}  " in site.status() for process in (one, other))
    assert [one.stop(), other.stop()] == [0, 0]


def test_a_worker_leaves_by_sigterm(site: Site) -> None:
    stays, leaves = (site.worker(machine) for machine in site.machines)
    jobs = site.ask(JOBS)
    under_load(site, stays, leaves)
    assert leaves.stop() == 0
    is_gone(site, leaves, slots=8)
    nothing_lost(site, jobs)
    assert stays.stop() == 0
    is_gone(site, stays, slots=0)


def test_a_worker_is_killed(site: Site) -> None:
    stays, dies = (site.worker(machine) for machine in site.machines)
    dead = id_of(site, dies)
    jobs = site.ask(2 * JOBS)
    under_load(site, stays, dies)
    dies.kill()
    is_gone(site, dies, slots=8)
    nothing_lost(site, jobs, dead)
    assert any(site.ran(job) == 2 for job in jobs), "it had something under way"
    assert stays.stop() == 0


def test_a_worker_is_cut_off(site: Site) -> None:
    stays, cut = (site.worker(machine) for machine in site.machines)
    lost, fenced = id_of(site, cut), site.fenced()
    jobs = site.ask(2 * JOBS)
    under_load(site, stays, cut)
    site.cut(site.machines[1])
    try:
        until = time.monotonic() + CUT_S
        is_gone(site, cut, slots=8)
        # All of it, by the one that is left, and what comes meanwhile.
        jobs += site.ask(JOBS)
        nothing_lost(site, jobs, lost)
        time.sleep(max(0.0, until - time.monotonic()))  # an outage, not an event
        assert cut.running
    finally:
        site.mend(site.machines[1])
    # It comes back by itself, as who it was. What it had finished meanwhile is refused.
    site.fabric.until(lambda: site.shown() == {stays.popen.pid, cut.popen.pid})
    assert id_of(site, cut) == lost
    site.fabric.until(lambda: site.fenced() > fenced)
    nothing_lost(site, jobs, lost)
    assert stays.stop() == 0
    nothing_lost(site, site.ask(40))
    assert cut.stop() == 0
