-- Builds of templates, from their registration on. A build has the template it is of whatever its
-- tags are; one that was assigned to a template before has it from there.

ALTER TABLE tiers ADD COLUMN concurrent_template_builds INTEGER NOT NULL DEFAULT 20
    CHECK (concurrent_template_builds >= 0);

ALTER TABLE env_builds ADD COLUMN env_id TEXT REFERENCES envs (id) ON DELETE CASCADE;
UPDATE env_builds SET env_id = (SELECT a.env_id FROM env_build_assignments a
                                WHERE a.build_id = env_builds.id ORDER BY a.id LIMIT 1);
CREATE INDEX env_builds_env ON env_builds (env_id);
CREATE INDEX env_builds_active ON env_builds (team_id, status_group);

-- Why a build failed, as JSON; null of one that did not.
ALTER TABLE env_builds ADD COLUMN reason TEXT;
-- How many lines its log has had.
ALTER TABLE env_builds ADD COLUMN log_lines INTEGER NOT NULL DEFAULT 0;

-- What builds say, in the order of `id`, which is never reused; `level` as in sandbox_logs.
CREATE TABLE build_logs (
    id        INTEGER PRIMARY KEY AUTOINCREMENT,
    build_id  TEXT NOT NULL REFERENCES env_builds (id) ON DELETE CASCADE,
    timestamp INTEGER NOT NULL,
    level     INTEGER NOT NULL,
    step      TEXT,
    message   TEXT NOT NULL
) STRICT;
CREATE INDEX build_logs_build ON build_logs (build_id, id);
CREATE INDEX build_logs_timestamp ON build_logs (timestamp);
