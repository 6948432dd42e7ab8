"""Other triggers on SQLite, which do not use ``lower``. No table changes."""

revision = "changes_0004"
down_revision = "changes_0003"


def upgrade() -> None:
    """Do nothing: the triggers are installed after the migrations."""


def downgrade() -> None:
    """Do nothing."""
