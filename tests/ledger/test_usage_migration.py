"""What was recorded before there were sums is summed up once."""

from __future__ import annotations

from alembic import command
from sqlalchemy import text

from fabric.ledger import Ledger, costs, upgrade, usage
from fabric.ledger.costs import Filter
from fabric.ledger.upgrade import migrations

_OLD = text("""
    INSERT INTO usage (
        job_id, attempt, tenant, endpoint, model, privacy, priority, tier, deployment, state,
        input_tokens, cached_input_tokens, output_tokens, reasoning_tokens, cost_usd, engine_s, accepted_ms, finished_ms
    ) VALUES
    ('job_1', 1, 'a', '/v1/completions', 'm', 'internal', 'batch', 'cpu', 'm-cpu', 'succeeded',
     10, 1, 20, 2, 0.5, 1.5, 1, 7200001),
    ('job_2', 1, 'a', '/v1/completions', 'm', 'internal', 'batch', 'cpu', 'm-cpu', 'failed',
     1, 0, 2, 0, 0.25, 0.5, 1, 90000000),
    ('job_3', 0, 'b', '/v1/embeddings', 'm', 'internal', 'batch', NULL, NULL, 'cancelled',
     0, 0, 0, 0, 0, 0, 1, 7200002)
""")


def test_old_rows_are_in_the_sums(empty_database: str) -> None:
    ledger = Ledger(empty_database)
    with ledger.writing() as connection:
        command.upgrade(migrations(connection), "0002")
        connection.execute(_OLD)
    upgrade(empty_database)
    for groups in ((), ("tenant", "day"), ("hour", "key"), ("endpoint",), ("tier", "deployment")):
        rows, _ = ledger.read(costs.grouped, Filter(), groups)
        assert sum(row["requests"] for row in rows) == 3, groups
        assert sum(row["cost_usd"] for row in rows) == 0.75
    by_day, _ = ledger.read(costs.grouped, Filter(), ("tenant", "day"))
    assert [(r["tenant"], r["day"], r["requests"], r["failures"], r["attempts"]) for r in by_day] == [
        ("a", 0, 1, 0, 1),
        ("a", 86_400_000, 1, 1, 1),
        ("b", 0, 1, 1, 0),
    ]
    (old,) = ledger.read(usage.of_job, "a", "job_1")
    assert (old.requests, old.price_version, old.cloud_equivalent_usd) == (1, None, 0.0)
    ledger.close()
