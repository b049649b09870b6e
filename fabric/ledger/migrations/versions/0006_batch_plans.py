"""Batches that are planned as a whole: what was asked, the plan, groups of lines and their places."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_PLACED = sa.text("state = 'open' AND place IS NOT NULL")
_UNPLACED = sa.text("state = 'open' AND place IS NULL AND group_no IS NOT NULL")


def upgrade() -> None:
    op.add_column("batches", sa.Column("options", sa.Text(), nullable=True))
    op.add_column("batches", sa.Column("plan", sa.Text(), nullable=True))
    op.add_column("batch_lines", sa.Column("group_no", sa.Integer(), nullable=True))
    op.add_column("batch_lines", sa.Column("place", sa.String(length=64), nullable=True))
    op.create_index(
        "ix_batch_lines_placed",
        "batch_lines",
        ["batch_id", "group_no", "place"],
        sqlite_where=_PLACED,
        postgresql_where=_PLACED,
    )
    op.create_index(
        "ix_batch_lines_unplaced",
        "batch_lines",
        ["batch_id", "group_no", "line_no"],
        sqlite_where=_UNPLACED,
        postgresql_where=_UNPLACED,
    )
    op.create_table(
        "batch_groups",
        sa.Column("batch_id", sa.String(length=64), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("batch_id", "number", name=op.f("pk_batch_groups")),
    )


def downgrade() -> None:
    op.drop_table("batch_groups")
    op.drop_index("ix_batch_lines_unplaced", table_name="batch_lines")
    op.drop_index("ix_batch_lines_placed", table_name="batch_lines")
    with op.batch_alter_table("batch_lines", schema=None) as batch_op:
        batch_op.drop_column("place")
        batch_op.drop_column("group_no")
    with op.batch_alter_table("batches", schema=None) as batch_op:
        batch_op.drop_column("plan")
        batch_op.drop_column("options")
