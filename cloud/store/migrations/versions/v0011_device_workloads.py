"""Workloads of devices that host several."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "device_workloads",
        sa.Column("device_id", sa.String(200), sa.ForeignKey("devices.device_id"), primary_key=True),
        sa.Column("workload", sa.String(200), primary_key=True),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("profile", sa.String(200), nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("serving_digest", sa.String(64), nullable=False),
        sa.Column("serving_generation", sa.BigInteger, nullable=False),
        sa.Column("serving_time_s", sa.Double, nullable=False),
    )
    op.create_index("device_workloads_by_profile", "device_workloads", ["profile"])
