-- Snapshots: builds that are copies of a sandbox. Each is of a template of source
-- `snapshot_template`; of those of one template and tag the newest counts, as for other builds. The
-- sandbox and the template that it was made of may be gone, so they are no references.
CREATE TABLE snapshots (
    build_id    TEXT PRIMARY KEY REFERENCES env_builds (id) ON DELETE CASCADE,
    env_id      TEXT NOT NULL REFERENCES envs (id) ON DELETE CASCADE,
    team_id     TEXT NOT NULL REFERENCES teams (id),
    tag         TEXT NOT NULL,
    sandbox_id  TEXT NOT NULL,
    base_env_id TEXT NOT NULL,
    kept        TEXT NOT NULL CHECK (kept IN ('disk', 'frozen', 'checkpoint')),
    created_at  INTEGER NOT NULL
) STRICT;
CREATE INDEX snapshots_team ON snapshots (team_id, created_at);
CREATE INDEX snapshots_env ON snapshots (env_id);
