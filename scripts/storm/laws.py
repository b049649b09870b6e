"""The laws: each takes the evidence and answers how it was broken, one sentence each. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from statistics import median

from fabric.store.transitions import RECORD_TTL_S
from storm.asks import MOCK_TOKENS, read_answer, tokens
from storm.figures import percentile
from storm.values import ENDS, Evidence, Memory, Row

Law = Callable[[Evidence], list[str]]

#: US dollars per token of the played cloud (``stage.CONFIG``).
CLOUD_INPUT_USD, CLOUD_OUTPUT_USD = 2.5e-6, 10e-6
#: Where which engine's deployments are, as they are called in ``stage.CONFIG``.
ENGINES = {
    "hosted-cloud": "cloud",
    "hosted-cpu": "home",
    "quick-cpu": "home",
    "patient": "provider",
    "patient-batch": "provider",
}
#: What they take of the cloud's price.
SHARES = {"hosted-cloud": 1.0, "patient": 1.0, "patient-batch": 0.5}
MOCKS = ("quick-gpu",)
#: The webhook that is told of all ends; the other one is another tenant's.
TOLD = "ended"
RECOVERY_DEATH_MS, RECOVERY_BACK_MS = 10_000, 15_000
#: What a process may grow by between the second quarter of its life and the last.
GROWTH, GROWTH_BYTES = 1.25, 30_000_000
#: What Valkey may grow by with each job that ends, and for all else.
JOB_BYTES, STORE_BYTES = 8_000, 20_000_000
#: Of a life shorter than this nothing can be said.
LIFE_S = 90.0
#: What the door may take to say that the store is away, and what a loaded machine adds.
DOOR_S = 2.0 + 1.5


def one_outcome(evidence: Evidence) -> list[str]:
    """Every accepted job has exactly one end in the ledger, and it is its last row. One that was parked and replayed
    has a row for each time that it was parked, too."""
    rows = _by_job(evidence.rows)
    broken = []
    for job_id in sorted({told.job_id for told in evidence.told} | rows.keys()):
        own = rows.get(job_id, [])
        ends = [row for row in own if row.state in ENDS and row.attempt >= 0]
        if not ends:
            broken.append(f"{job_id} was accepted and has no outcome")
        elif not _one_end([row.state for row in ends], replayed=job_id in evidence.replayed):
            broken.append(f"{job_id} has {len(ends)} outcomes: {[(row.attempt, row.state) for row in ends]}")
        elif ends[-1].attempt != max(row.attempt for row in own):
            broken.append(f"{job_id} went on after its end at attempt {ends[-1].attempt}")
    lines = Counter((row.batch_id, row.line_no) for row in evidence.rows if row.state in ENDS and row.batch_id)
    broken += [f"line {line} has no outcome in the ledger" for line in evidence.lines if not lines[line]]
    return broken


def one_event(evidence: Evidence) -> list[str]:
    """A job's log has one final event, and one for each time that it was parked before."""
    return [
        f"the log of {job} has the final events {list(ends)}"
        for job, ends in evidence.ends.items()
        if not _one_end(ends, replayed=job in evidence.replayed)
    ]


def _one_end(states: Sequence[str], *, replayed: bool) -> bool:
    return len(states) == 1 or (replayed and len(states) > 1 and set(states[:-1]) == {"dead"})


def one_answer(evidence: Evidence) -> list[str]:
    """Whole answers in one voice, the same whoever asks, and one job for each Idempotency-Key."""
    broken = []
    voices: dict[str, set[str]] = defaultdict(set)
    jobs: dict[int, set[str]] = defaultdict(set)
    for told in evidence.told:
        jobs[told.ask].add(told.job_id)
        if told.text is None:
            continue
        answer = read_answer(told.text)
        if answer is None or answer.n not in (None, told.ask):
            broken.append(f"{told.job_id} (ask {told.ask}) was answered with {told.text[:80]!r}")
        else:
            voices[told.job_id].add(answer.generation)
    broken += [f"{job} was answered by {len(found)} generations" for job, found in voices.items() if len(found) > 1]
    broken += [f"ask {ask} became {len(found)} jobs" for ask, found in jobs.items() if len(found) > 1]
    for batch, custom_ids in evidence.batches.items():
        twice = [name for name, count in Counter(custom_ids).items() if count > 1]
        if twice:
            broken.append(f"batch {batch} has {len(twice)} lines twice: {twice[:3]}")
        wanted = {f"line-{ask}" for (of, _), ask in evidence.lines.items() if of == batch}
        if missing := wanted - set(custom_ids):
            broken.append(f"batch {batch} lacks {len(missing)} lines: {sorted(missing)[:3]}")
    return broken


def told_as_recorded(evidence: Evidence) -> list[str]:
    """What a client was told of a job's end is what the ledger has."""
    ends = {job_id: row.state for job_id, row in _ends(evidence).items()}
    return [
        f"{told.job_id}: a client was told {told.state}, the ledger has {ends.get(told.job_id)}"
        for told in evidence.told
        if told.state is not None and ends.get(told.job_id) != told.state
    ]


def label_kept(evidence: Evidence) -> list[str]:
    """No restricted request ever reached the cloud."""
    seen = [g for g in evidence.generations if g.engine != "home" and g.label == "restricted"]
    rows = [row for row in evidence.rows if row.privacy == "restricted" and row.tier == "cloud"]
    return [f"the cloud saw ask {g.ask}, which is restricted" for g in seen] + [
        f"{row.job_id} is restricted and had attempt {row.attempt} on {row.deployment}" for row in rows
    ]


def money_adds_up(evidence: Evidence) -> list[str]:
    """What succeeded was generated and costs what its engine counted; budgets hold what the ledger says was spent."""
    broken = []
    asks = _asks(evidence)
    finished = Counter((g.engine, g.ask) for g in evidence.generations if g.answered)
    paid: Counter[tuple[str, int]] = Counter()
    for row in evidence.rows:
        ask = asks.get(row.job_id)
        if row.state != "succeeded" or ask is None:
            continue
        used = (row.input_tokens, row.output_tokens)
        if row.deployment in MOCKS:
            if row.output_tokens != MOCK_TOKENS or row.cost_usd != row.machine_usd:
                broken.append(f"{row.job_id} is down with {used} tokens of the mock engine and {row.cost_usd} USD")
            continue
        engine = ENGINES.get(row.deployment or "", "?")
        paid[engine, ask] += 1
        wanted = tokens(ask)
        if used != wanted:
            broken.append(f"{row.job_id} is down with {used} tokens, its engine counted {wanted}")
        price = (wanted[0] * CLOUD_INPUT_USD + wanted[1] * CLOUD_OUTPUT_USD) * SHARES.get(row.deployment or "", 0.0)
        if abs(row.cost_usd - row.machine_usd - price) > 1e-12:
            broken.append(f"{row.job_id} is down with {row.cost_usd - row.machine_usd:.9f} USD and cost {price:.9f}")
    for (engine, ask), count in paid.items():
        if count > finished[engine, ask]:
            broken.append(
                f"ask {ask} is paid {count} times at {engine}, which finished it {finished[engine, ask]} times"
            )
    spent = sum(round((row.cost_usd - row.machine_usd) * 1e9) for row in evidence.rows)
    for name, (reserved, counted) in evidence.budgets.items():
        if reserved:
            broken.append(f"budget {name} still reserves {reserved} billionths for jobs that have all ended")
        if abs(counted - spent) > len(evidence.rows):  # half a billionth of rounding each
            broken.append(f"budget {name} has spent {counted}, the ledger {spent} billionths")
    return broken


def sent_once(evidence: Evidence) -> list[str]:
    """No request is answered in two of the provider's batches: both would be on its bill."""
    answered = Counter(g.ask for g in evidence.generations if g.engine == "provider" and g.answered)
    return [f"the provider answered ask {ask} {count} times" for ask, count in answered.items() if count > 1]


def second_tries_end(evidence: Evidence) -> list[str]:
    """Each second try either became its job's answer or has a row of its own in the ledger, which doesn't count as a
    request."""
    begun, won = evidence.second_tries
    lost = len(evidence.twins)
    return [f"{begun} second tries began, {won} won and {lost} are in the ledger"] if begun > won + lost else []


def ends_are_told(evidence: Evidence) -> list[str]:
    """Every end that somebody wants to hear of was told at least once, signed, without what was asked or answered; and
    to nobody who hears of other tenants."""
    broken = [f"event {event.id} ({event.type}) has a wrong signature" for event in evidence.events if not event.signed]
    broken += [f"event {event.id} ({event.type}) holds a text" for event in evidence.events if event.leaks]
    broken += [f"{event.hook} was told of {event.subject}" for event in evidence.events if event.hook != TOLD]
    kept = {(event.subject, event.type) for event in evidence.events if event.kept}
    ends = _ends(evidence)
    for told in evidence.told:
        row = ends.get(told.job_id)
        if row is not None and row.batch_id is None and (told.job_id, f"job.{row.state}") not in kept:
            broken.append(f"nobody was told that {told.job_id} is {row.state}")
    broken += [
        f"nobody was told that {batch} is completed"
        for batch in evidence.batches
        if (batch, "batch.completed") not in kept
    ]
    return sorted(set(broken))


def nothing_left(evidence: Evidence) -> list[str]:
    """No index of the store holds a job when all have ended."""
    return [f"{count} left in {name}" for name, count in evidence.left.items() if count]


def no_early_expiry(evidence: Evidence) -> list[str]:
    """No job expired before its deadline by the store's clock."""
    deadlines = {told.job_id: told.deadline_s for told in evidence.told if told.deadline_s is not None}
    broken = []
    for row in evidence.rows:
        if row.state == "expired" and row.batch_id is None:
            deadline_s = deadlines.get(row.job_id)
            lived_s = (row.finished_ms - row.accepted_ms) / 1000
            if deadline_s is None or lived_s < deadline_s - 1:
                broken.append(f"{row.job_id} expired after {lived_s:.1f} s of {deadline_s or 0:g}")
    return broken


def door_answers(evidence: Evidence) -> list[str]:
    """While the store or the broker is away the door says so, soon, and goes on living."""
    broken = []
    for probe in evidence.probes:
        live = probe.path == "/health/live"
        said = probe.status == (200 if live else 503) and (live or probe.retry_after or probe.path == "/health/ready")
        if not said or probe.seconds > DOOR_S:
            broken.append(f"{probe.path} said {probe.status} after {probe.seconds:.1f} s of an outage")
    return broken


def recovers(evidence: Evidence) -> list[str]:
    """Jobs of a dead worker run elsewhere within 10 s (p99), and work goes on within 15 s of a broker's return."""
    broken = []
    deaths, backs = recoveries(evidence)
    if deaths and percentile(deaths, 99) > RECOVERY_DEATH_MS:
        broken.append(f"jobs of dead workers ran elsewhere after {percentile(deaths, 99) / 1000:.1f} s (p99)")
    if backs and max(backs) > RECOVERY_BACK_MS:
        broken.append(f"work went on {max(backs) / 1000:.1f} s after the broker was back")
    return broken


def recoveries(evidence: Evidence) -> tuple[list[int], list[int]]:
    """Milliseconds from a worker's death to the next claim of each of its jobs, of workers that died alone; and from
    a broker's return to the first claim of anything, but for one that was taken away again before it was late."""
    rows = _by_job(evidence.rows)
    deaths = {death.worker: death.at_ms for death in evidence.deaths if death.alone}
    after_death = []
    for own in rows.values():
        for before, after in pairwise(own):
            died_ms = deaths.get(before.worker or "")
            if died_ms is not None and before.error_code == "worker_lost" and after.claimed_ms is not None:
                after_death.append(after.claimed_ms - died_ms)
    claims = sorted(row.claimed_ms for row in evidence.rows if row.claimed_ms is not None)
    after_back = []
    for back_ms in evidence.backs:
        work_ms = next((claim for claim in claims if claim >= back_ms), None)
        away_ms = next((outage for outage in sorted(evidence.outages) if outage >= back_ms), None)
        if away_ms is not None and (work_ms is None or away_ms < work_ms):
            after_back += [away_ms - back_ms] if away_ms - back_ms > RECOVERY_BACK_MS else []
        elif work_ms is not None:
            after_back.append(work_ms - back_ms)
    return after_death, after_back


def memory_flat(evidence: Evidence) -> list[str]:
    """No process grows with what it has done."""
    return [
        f"{life.process} ({life.pid}) grew from {early / 1e6:.0f} to {late / 1e6:.0f} MB"
        for life, early, late in growths(evidence)
        if late > early * GROWTH and late > early + GROWTH_BYTES
    ]


def growths(evidence: Evidence) -> list[tuple[Memory, float, float]]:
    """Bytes in the second quarter and in the last of each life that was long enough."""
    lives = []
    for life in evidence.memory:
        if life.seconds >= LIFE_S and len(life.bytes) >= 8:
            quarter = len(life.bytes) // 4
            lives.append((life, median(life.bytes[quarter : 2 * quarter]), median(life.bytes[-quarter:])))
    return lives


def store_forgets(evidence: Evidence) -> list[str]:
    """The store keeps what clients may ask for of ended jobs for an hour, some kilobytes each, and nothing for ever."""
    kept, broken = evidence.kept, []
    if kept.lasting:
        broken.append(f"{kept.lasting} keys of jobs that have ended never expire")
    if kept.longest_s > RECORD_TTL_S:
        broken.append(f"the record of a job that has ended is kept for {kept.longest_s} s")
    jobs = len({row.job_id for row in evidence.rows})
    if kept.bytes > STORE_BYTES + JOB_BYTES * jobs:
        broken.append(f"the store has grown by {kept.bytes / 1e6:.1f} MB with {jobs} jobs")
    return broken


def no_odd_answer(evidence: Evidence) -> list[str]:
    """No client got what the API never promises: another status, an answer without an end."""
    return list(evidence.odd)


def nobody_gave_up(evidence: Evidence) -> list[str]:
    """No process ended but those that were killed."""
    return [f"{name} ended by itself" for name in evidence.exits]


LAWS: tuple[Law, ...] = (
    one_outcome,
    one_event,
    one_answer,
    told_as_recorded,
    label_kept,
    money_adds_up,
    sent_once,
    second_tries_end,
    ends_are_told,
    nothing_left,
    no_early_expiry,
    door_answers,
    recovers,
    memory_flat,
    store_forgets,
    no_odd_answer,
    nobody_gave_up,
)
#: Those that measure time, which a machine that is busy with other things can break.
TIMED: tuple[Law, ...] = (door_answers, recovers, memory_flat)


def broken(evidence: Evidence, laws: Iterable[Law] = LAWS) -> dict[str, list[str]]:
    """The laws that don't hold, and how."""
    return {law.__name__: found for law in laws if (found := law(evidence))}


def _by_job(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """In the order of their attempts; late charges are none."""
    jobs: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.attempt):
        if row.attempt >= 0:
            jobs[row.job_id].append(row)
    return jobs


def _ends(evidence: Evidence) -> dict[str, Row]:
    """The last end of each job."""
    return {row.job_id: row for row in sorted(evidence.rows, key=lambda row: row.attempt) if row.state in ENDS}


def _asks(evidence: Evidence) -> dict[str, int]:
    """Job -> what was asked, as far as anybody was told."""
    known = {told.job_id: told.ask for told in evidence.told}
    for row in evidence.rows:
        if row.batch_id is not None and (ask := evidence.lines.get((row.batch_id, row.line_no or 0))) is not None:
            known[row.job_id] = ask
    return known
