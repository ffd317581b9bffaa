"""sweep_claims: which worker holds which trial, and until when."""

import sqlalchemy as sa
from alembic import op

revision = "v0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "sweep_claims",
        sa.Column(
            "trial_id",
            sa.Integer,
            sa.ForeignKey("trials.trial_id", ondelete="CASCADE"),
            primary_key=True,
            autoincrement=False,
        ),
        sa.Column("study_id", sa.Integer, nullable=False, index=True),
        sa.Column("worker", sa.String(200), nullable=True, index=True),
        sa.Column("lease_until", sa.Float(53), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("token", sa.String(32), nullable=False),
    )
    if op.get_bind().dialect.name == "sqlite":
        # Optuna deletes trials without foreign keys, and SQLite gives their ids to new trials.
        op.execute(
            "CREATE TRIGGER sweep_claims_follow_trials AFTER DELETE ON trials "
            "BEGIN DELETE FROM sweep_claims WHERE trial_id = old.trial_id; END"
        )


def downgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.execute("DROP TRIGGER sweep_claims_follow_trials")
    op.drop_table("sweep_claims")
