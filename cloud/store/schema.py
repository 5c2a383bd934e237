"""The tables as the newest migration leaves them.

Rules kept here:

- A change here needs a migration beside it; a test compares the two.
- What is searched, joined or ordered by has a column. The rest of a value is one canonical JSON text, so that
  a new field with a default needs no migration.
- Times are float seconds since the epoch; integers that a wire can fill are 64 bits wide.
- No foreign keys towards what may be pruned or replaced on its own: evidence outlives the profile it was for.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

metadata = MetaData()

_DIGEST = String(64)
_NAME = String(200)

meta = Table(
    "meta",
    metadata,
    Column("key", _NAME, primary_key=True),
    Column("value", Text, nullable=False),
)

workloads = Table(
    "workloads",
    metadata,
    Column("name", _NAME, primary_key=True),
    Column("spec_json", Text, nullable=False),
    Column("update_time_s", Double, nullable=False),
)

teachers = Table(
    "teachers",
    metadata,
    Column("teacher_key", _NAME, primary_key=True),
    Column("workload", _NAME, nullable=False),
    Column("result_json", Text, nullable=False),
    Column("create_time_s", Double, nullable=False),
)

profiles = Table(
    "profiles",
    metadata,
    Column("name", _NAME, primary_key=True),
    Column("workload", _NAME, nullable=False),
    Column("spec_json", Text, nullable=False),
    Column("update_time_s", Double, nullable=False),
)

# Apart from the profile, so that removing and applying a profile again does not forget what its devices run.
current_artifacts = Table(
    "current_artifacts",
    metadata,
    Column("profile", _NAME, primary_key=True),
    Column("digest", _DIGEST, nullable=False),
    Column("manifest_digest", _DIGEST, nullable=False),
    Column("rollout_id", _NAME, nullable=False),
    Column("update_time_s", Double, nullable=False),
)

candidates = Table(
    "candidates",
    metadata,
    Column("digest", _DIGEST, primary_key=True),
    Column("profile", _NAME, primary_key=True),
    Column("workload", _NAME, nullable=False),
    Column("candidate_json", Text, nullable=False),
    Column("create_time_s", Double, nullable=False),
    Index("candidates_by_profile", "profile", "create_time_s"),
)

failed_trials = Table(
    "failed_trials",
    metadata,
    Column("profile", _NAME, primary_key=True),
    Column("spec_digest", _NAME, primary_key=True),
    Column("spec_json", Text, nullable=False),
    Column("code", _NAME, nullable=False),
    Column("message", Text, nullable=False),
    Column("event_time_s", Double, nullable=False),
)

jobs = Table(
    "jobs",
    metadata,
    Column("job_id", _NAME, primary_key=True),
    Column("state", _NAME, nullable=False),
    Column("job_json", Text, nullable=False),
    Column("create_time_s", Double, nullable=False),
    Index("jobs_by_state", "state", "create_time_s"),
)

devices = Table(
    "devices",
    metadata,
    Column("device_id", _NAME, primary_key=True),
    Column("profile", _NAME, nullable=False),
    Column("message", Text, nullable=False),
    Column("registration_json", Text, nullable=False),
    Column("boot_id", _NAME, nullable=False),
    Column("connected", Boolean, nullable=False),
    Column("register_time_s", Double, nullable=False),
    Column("last_seen_s", Double, nullable=False),
    # The highest that it ever said it accepted.
    Column("generation", BigInteger, nullable=False),
    Column("serving_digest", _DIGEST, nullable=False),
    Column("serving_generation", BigInteger, nullable=False),
    # The device's clock at the newest word on what it serves: an older one does not replace it.
    Column("serving_time_s", Double, nullable=False),
    Index("devices_by_profile", "profile"),
)

# Of devices that were configured to host several workloads, those that their newest registration names; a
# device that runs one, whichever, has no row here.
device_workloads = Table(
    "device_workloads",
    metadata,
    Column("device_id", _NAME, ForeignKey("devices.device_id"), primary_key=True),
    Column("workload", _NAME, primary_key=True),
    # Place in the device's own list, from 0.
    Column("position", Integer, nullable=False),
    Column("profile", _NAME, nullable=False),
    Column("message", Text, nullable=False),
    # Each of these as in devices.
    Column("generation", BigInteger, nullable=False),
    Column("serving_digest", _DIGEST, nullable=False),
    Column("serving_generation", BigInteger, nullable=False),
    Column("serving_time_s", Double, nullable=False),
    Index("device_workloads_by_profile", "profile"),
)

deployments = Table(
    "deployments",
    metadata,
    Column("device_id", _NAME, ForeignKey("devices.device_id"), primary_key=True),
    Column("generation", BigInteger, primary_key=True, autoincrement=False),
    Column("workload", _NAME, nullable=False),
    Column("profile", _NAME, nullable=False),
    Column("digest", _DIGEST, nullable=False),
    Column("manifest_digest", _DIGEST, nullable=False),
    Column("rollout_id", _NAME, nullable=False),
    Column("decision_id", _NAME, nullable=False),
    Column("issue_time_s", Double, nullable=False),
    Column("signed", LargeBinary, nullable=False),
    Column("state", _NAME, nullable=False),
    Column("code", _NAME, nullable=False),
    Column("message", Text, nullable=False),
    Column("progress", Double, nullable=False),
    Column("update_time_s", Double, nullable=False),
)

deployment_history = Table(
    "deployment_history",
    metadata,
    Column("device_id", _NAME, primary_key=True),
    Column("generation", BigInteger, primary_key=True, autoincrement=False),
    Column("state", _NAME, primary_key=True),
    Column("digest", _DIGEST, nullable=False),
    Column("code", _NAME, nullable=False),
    Column("message", Text, nullable=False),
    Column("progress", Double, nullable=False),
    Column("event_time_s", Double, nullable=False),
    Column("receive_time_s", Double, nullable=False),
    Index("deployment_history_by_time", "receive_time_s"),
)

decisions = Table(
    "decisions",
    metadata,
    Column("position", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("decision_id", _NAME, nullable=False, unique=True),
    Column("profile", _NAME, nullable=False),
    Column("action", _NAME, nullable=False),
    # Action, verdict and digests: equal in two that say the same.
    Column("outcome", Text, nullable=False),
    # Whether its outcome differs from the one before it in its profile.
    Column("is_change", Boolean, nullable=False),
    Column("decision_json", Text, nullable=False),
    Column("decide_time_s", Double, nullable=False),
    Column("last_time_s", Double, nullable=False),
    Column("num_repeats", BigInteger, nullable=False),
    Index("decisions_by_profile", "profile", "position"),
)

policy_states = Table(
    "policy_states",
    metadata,
    Column("profile", _NAME, primary_key=True),
    Column("state_json", Text, nullable=False),
    Column("update_time_s", Double, nullable=False),
)

rollouts = Table(
    "rollouts",
    metadata,
    Column("rollout_id", _NAME, primary_key=True),
    Column("profile", _NAME, nullable=False),
    Column("state", _NAME, nullable=False),
    Column("rollout_json", Text, nullable=False),
    Column("create_time_s", Double, nullable=False),
    Column("update_time_s", Double, nullable=False),
    Index("rollouts_by_profile", "profile", "create_time_s"),
)

# Clustered by its key where the database can: one tree to write for each report instead of two.
reports = Table(
    "reports",
    metadata,
    Column("device_id", _NAME, primary_key=True),
    Column("boot_id", _NAME, primary_key=True),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("digest", _DIGEST, nullable=False),
    Column("generation", BigInteger, nullable=False),
    Column("workload", _NAME, nullable=False),
    Column("start_s", Double, nullable=False),
    Column("end_s", Double, nullable=False),
    Column("num_samples", BigInteger, nullable=False),
    Column("latency", LargeBinary, nullable=False),
    Column("reference", LargeBinary, nullable=False),
    Column("num_errors", BigInteger, nullable=False),
    Column("rss_bytes", BigInteger, nullable=False),
    Column("emulated_slowdown", Integer, nullable=False),
    Column("num_dropped_reports", BigInteger, nullable=False),
    Index("reports_by_time", "device_id", "end_s"),
    sqlite_with_rowid=False,
)

identities = Table(
    "identities",
    metadata,
    Column("device_id", _NAME, primary_key=True),
    Column("labels_json", Text, nullable=False),
    Column("create_time_s", Double, nullable=False),
    # 0 unless an operator revoked it and has not enrolled it again since.
    Column("revoke_time_s", Double, nullable=False),
)

enrolment_tokens = Table(
    "enrolment_tokens",
    metadata,
    # sha256 of the token, which is random and long enough that no slow hash is needed.
    Column("token_hash", _DIGEST, primary_key=True),
    Column("device_id", _NAME, nullable=False),
    Column("create_time_s", Double, nullable=False),
    Column("expire_time_s", Double, nullable=False),
    # 0 until it was used.
    Column("use_time_s", Double, nullable=False),
    Index("enrolment_tokens_by_device", "device_id"),
)

certificates = Table(
    "certificates",
    metadata,
    Column("serial", String(64), primary_key=True),
    Column("device_id", _NAME, nullable=False),
    # sha256 of the public key: a key is certified once.
    Column("key_digest", _DIGEST, nullable=False, unique=True),
    Column("not_before_s", Double, nullable=False),
    Column("not_after_s", Double, nullable=False),
    # 0 unless it was revoked.
    Column("revoke_time_s", Double, nullable=False),
    Index("certificates_by_device", "device_id", "not_after_s"),
    Index("certificates_by_revocation", "revoke_time_s", "not_after_s"),
)

operators = Table(
    "operators",
    metadata,
    Column("name", _NAME, primary_key=True),
    Column("token_hash", _DIGEST, nullable=False, unique=True),
    Column("role", _NAME, nullable=False),
    Column("create_time_s", Double, nullable=False),
    # 0 for never.
    Column("expire_time_s", Double, nullable=False),
    Column("revoke_time_s", Double, nullable=False),
)

audit = Table(
    "audit",
    metadata,
    Column("position", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("event_time_s", Double, nullable=False),
    Column("actor", _NAME, nullable=False),
    Column("action", _NAME, nullable=False),
    Column("target", _NAME, nullable=False),
    Column("outcome", _NAME, nullable=False),
    Column("message", Text, nullable=False),
    Column("peer", _NAME, nullable=False),
)
