"""Identities of devices and operators, and the audit log."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "identities",
        sa.Column("device_id", sa.String(200), primary_key=True),
        sa.Column("labels_json", sa.Text, nullable=False),
        sa.Column("create_time_s", sa.Double, nullable=False),
        sa.Column("revoke_time_s", sa.Double, nullable=False),
    )
    op.create_table(
        "enrolment_tokens",
        sa.Column("token_hash", sa.String(64), primary_key=True),
        sa.Column("device_id", sa.String(200), nullable=False),
        sa.Column("create_time_s", sa.Double, nullable=False),
        sa.Column("expire_time_s", sa.Double, nullable=False),
        sa.Column("use_time_s", sa.Double, nullable=False),
    )
    op.create_index("enrolment_tokens_by_device", "enrolment_tokens", ["device_id"])
    op.create_table(
        "certificates",
        sa.Column("serial", sa.String(64), primary_key=True),
        sa.Column("device_id", sa.String(200), nullable=False),
        sa.Column("key_digest", sa.String(64), nullable=False, unique=True),
        sa.Column("not_before_s", sa.Double, nullable=False),
        sa.Column("not_after_s", sa.Double, nullable=False),
        sa.Column("revoke_time_s", sa.Double, nullable=False),
    )
    op.create_index("certificates_by_device", "certificates", ["device_id", "not_after_s"])
    op.create_index("certificates_by_revocation", "certificates", ["revoke_time_s", "not_after_s"])
    op.create_table(
        "operators",
        sa.Column("name", sa.String(200), primary_key=True),
        sa.Column("token_hash", sa.String(64), nullable=False, unique=True),
        sa.Column("role", sa.String(200), nullable=False),
        sa.Column("create_time_s", sa.Double, nullable=False),
        sa.Column("expire_time_s", sa.Double, nullable=False),
        sa.Column("revoke_time_s", sa.Double, nullable=False),
    )
    op.create_table(
        "audit",
        sa.Column("position", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("event_time_s", sa.Double, nullable=False),
        sa.Column("actor", sa.String(200), nullable=False),
        sa.Column("action", sa.String(200), nullable=False),
        sa.Column("target", sa.String(200), nullable=False),
        sa.Column("outcome", sa.String(200), nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("peer", sa.String(200), nullable=False),
    )
