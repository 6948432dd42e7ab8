"""Triggers of Postgres that restore ``lastval()`` (``postgres_triggers``); the tables are the same."""

revision = "changes_0004"
down_revision = "changes_0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Do nothing: the triggers are installed after the migrations."""


def downgrade() -> None:
    """Do nothing."""
