"""Usage by attempt with what it is compared to; sums by hour and day, hours of workers."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def _added() -> list[sa.Column[Any]]:
    return [
        sa.Column("requests", sa.Integer(), server_default="1", nullable=False),
        sa.Column("estimated", sa.Integer(), server_default="0", nullable=False),
        sa.Column("served_model", sa.String(length=128), nullable=True),
        sa.Column("policy_hash", sa.String(length=64), nullable=True),
        sa.Column("price_version", sa.String(length=64), nullable=True),
        sa.Column("machine_usd", sa.Double(), server_default="0", nullable=False),
        sa.Column("cloud_equivalent_usd", sa.Double(), server_default="0", nullable=False),
        sa.Column("baseline_usd", sa.Double(), server_default="0", nullable=False),
        sa.Column("expected_cost_usd", sa.Double(), nullable=True),
    ]


_COUNTS = (
    *("requests", "failures", "attempts", "estimated", "input_tokens", "cached_input_tokens", "output_tokens"),
    "reasoning_tokens",
)
_AMOUNTS = (
    *("engine_s", "cost_usd", "machine_usd", "cloud_equivalent_usd", "compared_usd", "baseline_usd"),
    *("expected_usd", "foreseen_usd", "missed_usd"),
)
#: What was recorded before there were sums.
_SUM_UP = """
INSERT INTO usage_sums
SELECT period, '', at_ms, tenant, key_id, endpoint, model, tier, deployment,
       count(*), sum(failed), sum(CASE WHEN attempt > 0 THEN 1 ELSE 0 END), 0, sum(input_tokens),
       sum(cached_input_tokens), sum(output_tokens), sum(reasoning_tokens), sum(engine_s), sum(cost_usd),
       0, 0, 0, 0, 0, 0, 0
FROM (
    SELECT p.period, tenant, finished_ms - finished_ms % p.ms AS at_ms,
           CASE WHEN p.period = 'brief' THEN '' ELSE coalesce(key_id, '') END AS key_id,
           CASE WHEN p.period = 'brief' THEN '' ELSE endpoint END AS endpoint,
           model, coalesce(tier, '') AS tier, coalesce(deployment, '') AS deployment, attempt,
           CASE WHEN state = 'succeeded' THEN 0 ELSE 1 END AS failed, input_tokens, cached_input_tokens,
           output_tokens, reasoning_tokens, engine_s, cost_usd
    FROM usage CROSS JOIN (
        SELECT 'hour' AS period, 3600000 AS ms UNION ALL SELECT 'day', 86400000 UNION ALL SELECT 'brief', 86400000
    ) AS p
) AS ended
GROUP BY period, at_ms, tenant, key_id, endpoint, model, tier, deployment
"""


def upgrade() -> None:
    for column in _added():
        op.add_column("usage", column)
    op.create_table(
        "usage_sums",
        sa.Column("period", sa.String(length=8), nullable=False),
        sa.Column("tag", sa.String(length=64), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("tenant", sa.String(length=128), nullable=False),
        sa.Column("key_id", sa.String(length=64), nullable=False),
        sa.Column("endpoint", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=128), nullable=False),
        sa.Column("tier", sa.String(length=16), nullable=False),
        sa.Column("deployment", sa.String(length=64), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in _COUNTS),
        *(sa.Column(name, sa.Double(), nullable=False) for name in _AMOUNTS),
        sa.PrimaryKeyConstraint(
            *("period", "tag", "at_ms", "tenant", "key_id", "endpoint", "model", "tier", "deployment"),
            name=op.f("pk_usage_sums"),
        ),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "worker_hours",
        sa.Column("worker", sa.String(length=64), nullable=False),
        sa.Column("hour_ms", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("tier", sa.String(length=16), nullable=False),
        sa.Column("slots", sa.Integer(), nullable=False),
        sa.Column("up_s", sa.Double(), nullable=False),
        sa.Column("usd_per_hour", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("worker", "hour_ms", name=op.f("pk_worker_hours")),
    )
    op.create_index("ix_worker_hours_hour", "worker_hours", ["hour_ms"])
    op.execute(_SUM_UP)


def downgrade() -> None:
    op.drop_index("ix_worker_hours_hour", table_name="worker_hours")
    for table in ("worker_hours", "usage_sums"):
        op.drop_table(table)
    with op.batch_alter_table("usage", schema=None) as batch_op:
        for column in reversed(_added()):
            batch_op.drop_column(column.name)
