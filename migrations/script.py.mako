"""${message}

Revises: ${down_revision | comma,n}
"""

import sqlalchemy as sa
from alembic import context, op

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = None
depends_on = None


def upgrade() -> None:
    names = context.config.attributes["names"]
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    names = context.config.attributes["names"]
    ${downgrades if downgrades else "pass"}
