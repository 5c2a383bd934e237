"""The first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "meta",
        sa.Column("key", sa.String(200), primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )
    op.create_table(
        "workloads",
        sa.Column("name", sa.String(200), primary_key=True),
        sa.Column("spec_json", sa.Text, nullable=False),
        sa.Column("update_time_s", sa.Double, nullable=False),
    )
    op.create_table(
        "teachers",
        sa.Column("teacher_key", sa.String(200), primary_key=True),
        sa.Column("workload", sa.String(200), nullable=False),
        sa.Column("result_json", sa.Text, nullable=False),
        sa.Column("create_time_s", sa.Double, nullable=False),
    )
    op.create_table(
        "profiles",
        sa.Column("name", sa.String(200), primary_key=True),
        sa.Column("workload", sa.String(200), nullable=False),
        sa.Column("spec_json", sa.Text, nullable=False),
        sa.Column("update_time_s", sa.Double, nullable=False),
    )
    op.create_table(
        "current_artifacts",
        sa.Column("profile", sa.String(200), primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("manifest_digest", sa.String(64), nullable=False),
        sa.Column("rollout_id", sa.String(200), nullable=False),
        sa.Column("update_time_s", sa.Double, nullable=False),
    )
    op.create_table(
        "candidates",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("profile", sa.String(200), primary_key=True),
        sa.Column("workload", sa.String(200), nullable=False),
        sa.Column("candidate_json", sa.Text, nullable=False),
        sa.Column("create_time_s", sa.Double, nullable=False),
    )
    op.create_index("candidates_by_profile", "candidates", ["profile", "create_time_s"])
    op.create_table(
        "failed_trials",
        sa.Column("profile", sa.String(200), primary_key=True),
        sa.Column("spec_digest", sa.String(200), primary_key=True),
        sa.Column("spec_json", sa.Text, nullable=False),
        sa.Column("code", sa.String(200), nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("event_time_s", sa.Double, nullable=False),
    )
    op.create_table(
        "jobs",
        sa.Column("job_id", sa.String(200), primary_key=True),
        sa.Column("state", sa.String(200), nullable=False),
        sa.Column("job_json", sa.Text, nullable=False),
        sa.Column("create_time_s", sa.Double, nullable=False),
    )
    op.create_index("jobs_by_state", "jobs", ["state", "create_time_s"])
    op.create_table(
        "devices",
        sa.Column("device_id", sa.String(200), primary_key=True),
        sa.Column("profile", sa.String(200), nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("registration_json", sa.Text, nullable=False),
        sa.Column("boot_id", sa.String(200), nullable=False),
        sa.Column("connected", sa.Boolean, nullable=False),
        sa.Column("register_time_s", sa.Double, nullable=False),
        sa.Column("last_seen_s", sa.Double, nullable=False),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("serving_digest", sa.String(64), nullable=False),
        sa.Column("serving_generation", sa.BigInteger, nullable=False),
        sa.Column("serving_time_s", sa.Double, nullable=False),
    )
    op.create_index("devices_by_profile", "devices", ["profile"])
    op.create_table(
        "deployments",
        sa.Column("device_id", sa.String(200), sa.ForeignKey("devices.device_id"), primary_key=True),
        sa.Column("generation", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("workload", sa.String(200), nullable=False),
        sa.Column("profile", sa.String(200), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("manifest_digest", sa.String(64), nullable=False),
        sa.Column("rollout_id", sa.String(200), nullable=False),
        sa.Column("decision_id", sa.String(200), nullable=False),
        sa.Column("issue_time_s", sa.Double, nullable=False),
        sa.Column("signed", sa.LargeBinary, nullable=False),
        sa.Column("state", sa.String(200), nullable=False),
        sa.Column("code", sa.String(200), nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("progress", sa.Double, nullable=False),
        sa.Column("update_time_s", sa.Double, nullable=False),
    )
    op.create_table(
        "deployment_history",
        sa.Column("device_id", sa.String(200), primary_key=True),
        sa.Column("generation", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("state", sa.String(200), primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("code", sa.String(200), nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("progress", sa.Double, nullable=False),
        sa.Column("event_time_s", sa.Double, nullable=False),
        sa.Column("receive_time_s", sa.Double, nullable=False),
    )
    op.create_table(
        "decisions",
        sa.Column("position", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("decision_id", sa.String(200), nullable=False, unique=True),
        sa.Column("profile", sa.String(200), nullable=False),
        sa.Column("action", sa.String(200), nullable=False),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("is_change", sa.Boolean, nullable=False),
        sa.Column("decision_json", sa.Text, nullable=False),
        sa.Column("decide_time_s", sa.Double, nullable=False),
        sa.Column("last_time_s", sa.Double, nullable=False),
        sa.Column("num_repeats", sa.BigInteger, nullable=False),
    )
    op.create_index("decisions_by_profile", "decisions", ["profile", "position"])
    op.create_table(
        "policy_states",
        sa.Column("profile", sa.String(200), primary_key=True),
        sa.Column("state_json", sa.Text, nullable=False),
        sa.Column("update_time_s", sa.Double, nullable=False),
    )
    op.create_table(
        "rollouts",
        sa.Column("rollout_id", sa.String(200), primary_key=True),
        sa.Column("profile", sa.String(200), nullable=False),
        sa.Column("state", sa.String(200), nullable=False),
        sa.Column("rollout_json", sa.Text, nullable=False),
        sa.Column("create_time_s", sa.Double, nullable=False),
        sa.Column("update_time_s", sa.Double, nullable=False),
    )
    op.create_index("rollouts_by_profile", "rollouts", ["profile", "create_time_s"])
    op.create_table(
        "reports",
        sa.Column("device_id", sa.String(200), primary_key=True),
        sa.Column("boot_id", sa.String(200), primary_key=True),
        sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("workload", sa.String(200), nullable=False),
        sa.Column("start_s", sa.Double, nullable=False),
        sa.Column("end_s", sa.Double, nullable=False),
        sa.Column("num_samples", sa.BigInteger, nullable=False),
        sa.Column("latency", sa.LargeBinary, nullable=False),
        sa.Column("reference", sa.LargeBinary, nullable=False),
        sa.Column("num_errors", sa.BigInteger, nullable=False),
        sa.Column("rss_bytes", sa.BigInteger, nullable=False),
        sa.Column("emulated_slowdown", sa.Integer, nullable=False),
        sa.Column("num_dropped_reports", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("reports_by_time", "reports", ["device_id", "end_s"])
