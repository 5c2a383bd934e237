"""What devices told lately is found without reading all that they ever told."""

from __future__ import annotations

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("deployment_history_by_time", "deployment_history", ["receive_time_s"])
