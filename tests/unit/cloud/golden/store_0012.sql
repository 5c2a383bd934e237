BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0012');
CREATE TABLE audit (
	position INTEGER NOT NULL, 
	event_time_s DOUBLE NOT NULL, 
	actor VARCHAR(200) NOT NULL, 
	action VARCHAR(200) NOT NULL, 
	target VARCHAR(200) NOT NULL, 
	outcome VARCHAR(200) NOT NULL, 
	message TEXT NOT NULL, 
	peer VARCHAR(200) NOT NULL, 
	PRIMARY KEY (position)
);
CREATE TABLE candidates (
	digest VARCHAR(64) NOT NULL, 
	profile VARCHAR(200) NOT NULL, 
	workload VARCHAR(200) NOT NULL, 
	candidate_json TEXT NOT NULL, 
	create_time_s DOUBLE NOT NULL, 
	PRIMARY KEY (digest, profile)
);
INSERT INTO "candidates" VALUES('1111111111111111111111111111111111111111111111111111111111111111','gateway-small','digits','{"create_time_s":100.0,"digest":"1111111111111111111111111111111111111111111111111111111111111111","manifest_digest":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","metrics":{"accuracy":0.97,"artifact_bytes":46000,"executable_bytes":0,"fidelity":null,"int8_loss":null,"latency_p50_ms":0.08,"latency_p95_ms":0.09,"macs":2000000,"metric":"accuracy","num_parameters":30000,"peak_rss_bytes":64000000,"reference_p50_ms":0.1,"test_accuracy":0.965},"parent_digest":"2222222222222222222222222222222222222222222222222222222222222222","precision":"int8","profile":"gateway-small","proposed_reason":"","rejected_reason":"","spec":{"alpha":0.7,"hint_weight":null,"importance":null,"learning_rate":0.002,"num_epochs":4,"precision":"int8","pruning_steps":null,"quantisation":null,"road":"distilled","rules":null,"seed":0,"sparsity":null,"temperature":4.0,"version":1,"width_ratio":0.5},"workload":"digits"}',100.0);
CREATE TABLE certificates (
	serial VARCHAR(64) NOT NULL, 
	device_id VARCHAR(200) NOT NULL, 
	key_digest VARCHAR(64) NOT NULL, 
	not_before_s DOUBLE NOT NULL, 
	not_after_s DOUBLE NOT NULL, 
	revoke_time_s DOUBLE NOT NULL, 
	PRIMARY KEY (serial), 
	UNIQUE (key_digest)
);
CREATE TABLE current_artifacts (
	profile VARCHAR(200) NOT NULL, 
	digest VARCHAR(64) NOT NULL, 
	manifest_digest VARCHAR(64) NOT NULL, 
	rollout_id VARCHAR(200) NOT NULL, 
	update_time_s DOUBLE NOT NULL, 
	PRIMARY KEY (profile)
);
INSERT INTO "current_artifacts" VALUES('gateway-small','1111111111111111111111111111111111111111111111111111111111111111','aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','rollout-1',114.0);
CREATE TABLE decisions (
	position INTEGER NOT NULL, 
	decision_id VARCHAR(200) NOT NULL, 
	profile VARCHAR(200) NOT NULL, 
	action VARCHAR(200) NOT NULL, 
	outcome TEXT NOT NULL, 
	is_change BOOLEAN NOT NULL, 
	decision_json TEXT NOT NULL, 
	decide_time_s DOUBLE NOT NULL, 
	last_time_s DOUBLE NOT NULL, 
	num_repeats BIGINT NOT NULL, 
	PRIMARY KEY (position), 
	UNIQUE (decision_id)
);
INSERT INTO "decisions" VALUES(1,'decision-1','gateway-small','build','["build","misses","2222222222222222222222222222222222222222222222222222222222222222","",[{"alpha":0.7,"hint_weight":null,"importance":null,"learning_rate":0.002,"num_epochs":4,"precision":"int8","pruning_steps":null,"quantisation":null,"road":"distilled","rules":null,"seed":0,"sparsity":null,"temperature":4.0,"version":1,"width_ratio":0.5}]]',1,'{"action":"build","chosen_digest":"","current_digest":"2222222222222222222222222222222222222222222222222222222222222222","inputs":{"now_s":110.0,"windows":[[1,2.5],[3,null]]},"lower_p95_ms":0.0,"measured_p95_ms":9.1,"num_devices":0,"num_samples":1200,"objective_p95_ms":8.0,"predicted_p95_ms":0.0,"profile":"gateway-small","reason":"p95 9.1 ms over 8 ms","specs":[{"alpha":0.7,"hint_weight":null,"importance":null,"learning_rate":0.002,"num_epochs":4,"precision":"int8","pruning_steps":null,"quantisation":null,"road":"distilled","rules":null,"seed":0,"sparsity":null,"temperature":4.0,"version":1,"width_ratio":0.5}],"upper_p95_ms":0.0,"verdict":"misses","workload":"digits"}',110.0,110.0,0);
INSERT INTO "decisions" VALUES(2,'decision-2','gateway-small','keep','["keep","meets","1111111111111111111111111111111111111111111111111111111111111111","",[]]',1,'{"action":"keep","chosen_digest":"","current_digest":"1111111111111111111111111111111111111111111111111111111111111111","inputs":{},"lower_p95_ms":0.0,"measured_p95_ms":7.0,"num_devices":0,"num_samples":0,"objective_p95_ms":0.0,"predicted_p95_ms":0.0,"profile":"gateway-small","reason":"p95 7.0 ms","specs":[],"upper_p95_ms":0.0,"verdict":"meets","workload":"digits"}',112.0,113.0,1);
CREATE TABLE deployment_history (
	device_id VARCHAR(200) NOT NULL, 
	generation BIGINT NOT NULL, 
	state VARCHAR(200) NOT NULL, 
	digest VARCHAR(64) NOT NULL, 
	code VARCHAR(200) NOT NULL, 
	message TEXT NOT NULL, 
	progress DOUBLE NOT NULL, 
	event_time_s DOUBLE NOT NULL, 
	receive_time_s DOUBLE NOT NULL, 
	PRIMARY KEY (device_id, generation, state)
);
INSERT INTO "deployment_history" VALUES('gw-1',1,'active','1111111111111111111111111111111111111111111111111111111111111111','','serving',0.0,120.0,121.0);
CREATE TABLE deployments (
	device_id VARCHAR(200) NOT NULL, 
	generation BIGINT NOT NULL, 
	workload VARCHAR(200) NOT NULL, 
	profile VARCHAR(200) NOT NULL, 
	digest VARCHAR(64) NOT NULL, 
	manifest_digest VARCHAR(64) NOT NULL, 
	rollout_id VARCHAR(200) NOT NULL, 
	decision_id VARCHAR(200) NOT NULL, 
	issue_time_s DOUBLE NOT NULL, 
	signed BLOB NOT NULL, 
	state VARCHAR(200) NOT NULL, 
	code VARCHAR(200) NOT NULL, 
	message TEXT NOT NULL, 
	progress DOUBLE NOT NULL, 
	update_time_s DOUBLE NOT NULL, 
	PRIMARY KEY (device_id, generation), 
	FOREIGN KEY(device_id) REFERENCES devices (device_id)
);
INSERT INTO "deployments" VALUES('gw-1',1,'digits','gateway-small','1111111111111111111111111111111111111111111111111111111111111111','aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','rollout-1','decision-1',115.0,X'7369676E6564206279746573','active','','serving',0.0,121.0);
CREATE TABLE device_workloads (
	device_id VARCHAR(200) NOT NULL, 
	workload VARCHAR(200) NOT NULL, 
	position INTEGER NOT NULL, 
	profile VARCHAR(200) NOT NULL, 
	message TEXT NOT NULL, 
	generation BIGINT NOT NULL, 
	serving_digest VARCHAR(64) NOT NULL, 
	serving_generation BIGINT NOT NULL, 
	serving_time_s DOUBLE NOT NULL, 
	PRIMARY KEY (device_id, workload), 
	FOREIGN KEY(device_id) REFERENCES devices (device_id)
);
CREATE TABLE devices (
	device_id VARCHAR(200) NOT NULL, 
	profile VARCHAR(200) NOT NULL, 
	message TEXT NOT NULL, 
	registration_json TEXT NOT NULL, 
	boot_id VARCHAR(200) NOT NULL, 
	connected BOOLEAN NOT NULL, 
	register_time_s DOUBLE NOT NULL, 
	last_seen_s DOUBLE NOT NULL, 
	generation BIGINT NOT NULL, 
	serving_digest VARCHAR(64) NOT NULL, 
	serving_generation BIGINT NOT NULL, 
	serving_time_s DOUBLE NOT NULL, 
	PRIMARY KEY (device_id)
);
INSERT INTO "devices" VALUES('gw-1','gateway-small','','{"agent_version":"0.1.0","boot_id":"boot-1","connected":true,"device_id":"gw-1","emulated_slowdown":3,"generation":0,"hardware":{"architecture":"x86_64","instruction_sets":["avx2","fma"],"memory_bytes":4294967296,"num_cores":2,"processor":"EPYC","runtime":"onnxruntime","runtime_version":"1.32.0"},"hosted":[],"labels":{"class":"small"},"last_seen_s":103.0,"message":"","operating_system":"Linux","profile":"gateway-small","python_version":"3.11.9","register_time_s":103.0,"serving_digest":"","serving_generation":0,"time_zone":""}','boot-1',1,103.0,140.0,1,'1111111111111111111111111111111111111111111111111111111111111111',1,132.0);
CREATE TABLE enrolment_tokens (
	token_hash VARCHAR(64) NOT NULL, 
	device_id VARCHAR(200) NOT NULL, 
	create_time_s DOUBLE NOT NULL, 
	expire_time_s DOUBLE NOT NULL, 
	use_time_s DOUBLE NOT NULL, 
	PRIMARY KEY (token_hash)
);
CREATE TABLE failed_trials (
	profile VARCHAR(200) NOT NULL, 
	spec_digest VARCHAR(200) NOT NULL, 
	spec_json TEXT NOT NULL, 
	code VARCHAR(200) NOT NULL, 
	message TEXT NOT NULL, 
	event_time_s DOUBLE NOT NULL, 
	PRIMARY KEY (profile, spec_digest)
);
INSERT INTO "failed_trials" VALUES('gateway-small','9a2f51290db8','{"alpha":0.7,"learning_rate":0.002,"num_epochs":4,"precision":"int8","road":"distilled","seed":0,"temperature":4.0,"version":1,"width_ratio":0.5}','failed','ran out of memory',102.0);
CREATE TABLE identities (
	device_id VARCHAR(200) NOT NULL, 
	labels_json TEXT NOT NULL, 
	create_time_s DOUBLE NOT NULL, 
	revoke_time_s DOUBLE NOT NULL, 
	PRIMARY KEY (device_id)
);
CREATE TABLE jobs (
	job_id VARCHAR(200) NOT NULL, 
	state VARCHAR(200) NOT NULL, 
	job_json TEXT NOT NULL, 
	create_time_s DOUBLE NOT NULL, 
	PRIMARY KEY (job_id)
);
INSERT INTO "jobs" VALUES('job-1','running','{"create_time_s":101.0,"decision_id":"decision-1","end_time_s":0.0,"job_id":"job-1","kind":"compress","max_trials":0,"message":"","profile":"gateway-small","progress":0.5,"state":"running","trials":[{"code":"","digest":"1111111111111111111111111111111111111111111111111111111111111111","message":"","progress":0.0,"reason":"","spec":{"alpha":0.7,"hint_weight":null,"importance":null,"learning_rate":0.002,"num_epochs":4,"precision":"int8","pruning_steps":null,"quantisation":null,"road":"distilled","rules":null,"seed":0,"sparsity":null,"temperature":4.0,"version":1,"width_ratio":0.5},"state":"succeeded","task_id":"t1"},{"code":"","digest":"","message":"","progress":0.0,"reason":"","spec":null,"state":"pending","task_id":"t2"}],"workload":"digits"}',101.0);
CREATE TABLE meta (
	"key" VARCHAR(200) NOT NULL, 
	value TEXT NOT NULL, 
	PRIMARY KEY ("key")
);
INSERT INTO "meta" VALUES('controller_paused','yes');
CREATE TABLE operators (
	name VARCHAR(200) NOT NULL, 
	token_hash VARCHAR(64) NOT NULL, 
	role VARCHAR(200) NOT NULL, 
	create_time_s DOUBLE NOT NULL, 
	expire_time_s DOUBLE NOT NULL, 
	revoke_time_s DOUBLE NOT NULL, 
	PRIMARY KEY (name), 
	UNIQUE (token_hash)
);
CREATE TABLE policy_states (
	profile VARCHAR(200) NOT NULL, 
	state_json TEXT NOT NULL, 
	update_time_s DOUBLE NOT NULL, 
	PRIMARY KEY (profile)
);
INSERT INTO "policy_states" VALUES('gateway-small','{"baselines":{},"current_digest":"1111111111111111111111111111111111111111111111111111111111111111","last_change_s":110.0,"measured":{},"num_miss_builds":0,"num_rollouts":{"1111111111111111111111111111111111111111111111111111111111111111":1},"num_slack_builds":0,"previous_digest":"","proposed":[],"situation":"","version":1}',113.0);
CREATE TABLE profiles (
	name VARCHAR(200) NOT NULL, 
	workload VARCHAR(200) NOT NULL, 
	spec_json TEXT NOT NULL, 
	update_time_s DOUBLE NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "profiles" VALUES('gateway-small','digits','{"constraints":{"artifact_bytes":null,"latency_p95_ms":8.0,"min_accuracy":0.9,"peak_rss_bytes":null},"instruction_sets":["avx2","sse4_2"],"match":{"architecture":"x86_64","instruction_sets":["avx2"],"labels":{"class":"small"},"max_cores":null,"max_memory_bytes":null,"min_cores":null,"min_memory_bytes":null},"name":"gateway-small","num_threads":1,"rollout":{"canary_share":0.25,"error_threshold":0.5,"groups":[],"maintenance_window":null,"max_per_minute":null,"success_threshold":1.0,"timeout_s":600.0},"workload":"digits"}',91.0);
CREATE TABLE reports (
	device_id VARCHAR(200) NOT NULL, 
	boot_id VARCHAR(200) NOT NULL, 
	sequence BIGINT NOT NULL, 
	digest VARCHAR(64) NOT NULL, 
	generation BIGINT NOT NULL, 
	workload VARCHAR(200) NOT NULL, 
	start_s DOUBLE NOT NULL, 
	end_s DOUBLE NOT NULL, 
	num_samples BIGINT NOT NULL, 
	latency BLOB NOT NULL, 
	reference BLOB NOT NULL, 
	num_errors BIGINT NOT NULL, 
	rss_bytes BIGINT NOT NULL, 
	emulated_slowdown INTEGER NOT NULL, 
	num_dropped_reports BIGINT NOT NULL, 
	PRIMARY KEY (device_id, boot_id, sequence)
)
 WITHOUT ROWID

;
INSERT INTO "reports" VALUES('gw-1','boot-1',0,'1111111111111111111111111111111111111111111111111111111111111111',1,'digits',130.0,131.0,4,X'08011208DA02EE02FD029F031A040101010121000000000000214029000000000000F03F310000000000001040',X'0801120489028C021A020101213D0AD7A3703DDA3F299A9999999999C93F31E17A14AE47E1CA3F',2,83886080,3,1);
INSERT INTO "reports" VALUES('gw-1','boot-1',1,'1111111111111111111111111111111111111111111111111111111111111111',1,'digits',131.0,132.0,4,X'08011208DA02EE02FD029F031A040101010121000000000000214029000000000000F03F310000000000001040',X'0801120489028C021A020101213D0AD7A3703DDA3F299A9999999999C93F31E17A14AE47E1CA3F',2,83886080,3,1);
CREATE TABLE rollouts (
	rollout_id VARCHAR(200) NOT NULL, 
	profile VARCHAR(200) NOT NULL, 
	state VARCHAR(200) NOT NULL, 
	rollout_json TEXT NOT NULL, 
	create_time_s DOUBLE NOT NULL, 
	update_time_s DOUBLE NOT NULL, 
	PRIMARY KEY (rollout_id)
);
INSERT INTO "rollouts" VALUES('rollout-1','gateway-small','running','{"create_time_s":111.0,"decision_id":"decision-1","digest":"1111111111111111111111111111111111111111111111111111111111111111","groups":[{"devices":[{"device_id":"gw-1","end_time_s":0.0,"expose_time_s":null,"message":"","start_time_s":0.0,"state":"waiting"}],"error_threshold":null,"name":"canary","settle_time_s":0.0,"start_time_s":0.0,"state":"waiting","success_threshold":null}],"manifest_digest":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","message":"","plan":{"canary_share":0.25,"error_threshold":0.5,"groups":[],"maintenance_window":null,"max_per_minute":null,"success_threshold":1.0,"timeout_s":600.0},"previous_digest":"2222222222222222222222222222222222222222222222222222222222222222","previous_manifest_digest":"bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb","profile":"gateway-small","resume_time_s":0.0,"rollout_id":"rollout-1","state":"running","update_time_s":111.0,"workload":"digits"}',111.0,110.0);
CREATE TABLE teachers (
	teacher_key VARCHAR(200) NOT NULL, 
	workload VARCHAR(200) NOT NULL, 
	result_json TEXT NOT NULL, 
	create_time_s DOUBLE NOT NULL, 
	PRIMARY KEY (teacher_key)
);
INSERT INTO "teachers" VALUES('feed','digits','{"accuracy":0.99,"artifact_bytes":400000,"artifact_digest":"2222222222222222222222222222222222222222222222222222222222222222","checkpoint_digest":"1111111111111111111111111111111111111111111111111111111111111111","latency_p50_ms":0.2,"macs":9000000,"metric":"accuracy","num_epochs":3,"num_inputs":0,"num_parameters":117000,"other_checkpoints":[],"reference_p50_ms":0.1,"teacher_key":"feed","test_accuracy":0.985,"train_s":12.5,"workload":"digits"}',95.0);
CREATE TABLE workloads (
	name VARCHAR(200) NOT NULL, 
	spec_json TEXT NOT NULL, 
	update_time_s DOUBLE NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "workloads" VALUES('digits','{"dataset":"digits","dataset_options":{"split":3},"name":"digits","search":{"family_epochs":0,"max_trials":4,"num_calibration_samples":256,"num_epochs":4,"width_ratios":[0.5,0.25]},"source_dir":"examples/digits","student":"teacher","teacher":"residual-cnn","teacher_options":{},"training":{"augment_flip":true,"augment_pixels":0,"batch_size":64,"label_smoothing":0.05,"learning_rate":0.002,"num_epochs":3,"seed":0,"weight_decay":0.01}}',90.0);
CREATE INDEX candidates_by_profile ON candidates (profile, create_time_s);
CREATE INDEX jobs_by_state ON jobs (state, create_time_s);
CREATE INDEX devices_by_profile ON devices (profile);
CREATE INDEX decisions_by_profile ON decisions (profile, position);
CREATE INDEX rollouts_by_profile ON rollouts (profile, create_time_s);
CREATE INDEX reports_by_time ON reports (device_id, end_s);
CREATE INDEX enrolment_tokens_by_device ON enrolment_tokens (device_id);
CREATE INDEX certificates_by_device ON certificates (device_id, not_after_s);
CREATE INDEX certificates_by_revocation ON certificates (revoke_time_s, not_after_s);
CREATE INDEX device_workloads_by_profile ON device_workloads (profile);
CREATE INDEX deployment_history_by_time ON deployment_history (receive_time_s);
COMMIT;
