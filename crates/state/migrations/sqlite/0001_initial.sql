-- Ids are text, times are microseconds since 1970 in UTC, flags are 0 or 1.

CREATE TABLE tiers (
    id                   TEXT PRIMARY KEY,
    name                 TEXT NOT NULL,
    concurrent_instances INTEGER NOT NULL CHECK (concurrent_instances >= 0),
    max_length_hours     INTEGER NOT NULL CHECK (max_length_hours > 0),
    max_vcpu             INTEGER NOT NULL CHECK (max_vcpu > 0),
    max_ram_mb           INTEGER NOT NULL CHECK (max_ram_mb > 0),
    disk_mb              INTEGER NOT NULL CHECK (disk_mb > 0)
) STRICT;

CREATE TABLE teams (
    id             TEXT PRIMARY KEY,
    name           TEXT NOT NULL,
    slug           TEXT NOT NULL UNIQUE CHECK (slug <> ''),
    tier           TEXT NOT NULL REFERENCES tiers (id),
    is_banned      INTEGER NOT NULL DEFAULT 0,
    is_blocked     INTEGER NOT NULL DEFAULT 0,
    blocked_reason TEXT,
    created_at     INTEGER NOT NULL
) STRICT;

CREATE TABLE users (
    id         TEXT PRIMARY KEY,
    email      TEXT,
    created_at INTEGER NOT NULL
) STRICT;

CREATE TABLE users_teams (
    user_id    TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    team_id    TEXT NOT NULL REFERENCES teams (id) ON DELETE CASCADE,
    is_default INTEGER NOT NULL DEFAULT 0,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (user_id, team_id)
) STRICT;

-- A key is kept as its hash; the mask is what may be shown of it.
CREATE TABLE team_api_keys (
    id             TEXT PRIMARY KEY,
    team_id        TEXT NOT NULL REFERENCES teams (id) ON DELETE CASCADE,
    api_key_hash   TEXT NOT NULL UNIQUE,
    prefix         TEXT NOT NULL,
    length         INTEGER NOT NULL,
    mask_prefix    TEXT NOT NULL,
    mask_suffix    TEXT NOT NULL,
    name           TEXT NOT NULL,
    is_development INTEGER NOT NULL,
    created_by     TEXT REFERENCES users (id) ON DELETE SET NULL,
    created_at     INTEGER NOT NULL,
    updated_at     INTEGER NOT NULL,
    last_used      INTEGER
) STRICT;
CREATE INDEX team_api_keys_team ON team_api_keys (team_id);

CREATE TABLE access_tokens (
    id                TEXT PRIMARY KEY,
    user_id           TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    access_token_hash TEXT NOT NULL UNIQUE,
    prefix            TEXT NOT NULL,
    length            INTEGER NOT NULL,
    mask_prefix       TEXT NOT NULL,
    mask_suffix       TEXT NOT NULL,
    name              TEXT NOT NULL,
    is_development    INTEGER NOT NULL,
    created_at        INTEGER NOT NULL
) STRICT;
CREATE INDEX access_tokens_user ON access_tokens (user_id);

-- Templates. Deletion is soft: sandboxes may still run from one.
CREATE TABLE envs (
    id              TEXT PRIMARY KEY,
    team_id         TEXT NOT NULL REFERENCES teams (id),
    public          INTEGER NOT NULL,
    source          TEXT NOT NULL DEFAULT 'template'
                    CHECK (source IN ('template', 'snapshot', 'snapshot_template')),
    spawn_count     INTEGER NOT NULL DEFAULT 0,
    last_spawned_at INTEGER,
    created_by      TEXT REFERENCES users (id) ON DELETE SET NULL,
    created_at      INTEGER NOT NULL,
    updated_at      INTEGER NOT NULL,
    deleted_at      INTEGER
) STRICT;
CREATE INDEX envs_team ON envs (team_id);

-- Names of templates; no namespace means the global one. Ids are time-ordered (UUIDv7): the first
-- alias of a template is the one of least id.
CREATE TABLE env_aliases (
    id        TEXT PRIMARY KEY,
    alias     TEXT NOT NULL,
    namespace TEXT CHECK (namespace <> ''),
    env_id    TEXT NOT NULL REFERENCES envs (id) ON DELETE CASCADE
) STRICT;
CREATE UNIQUE INDEX env_aliases_name ON env_aliases (alias, COALESCE(namespace, ''));
CREATE INDEX env_aliases_env ON env_aliases (env_id);

CREATE TABLE env_builds (
    id           TEXT PRIMARY KEY,
    team_id      TEXT NOT NULL REFERENCES teams (id),
    status       TEXT NOT NULL,
    status_group TEXT NOT NULL CHECK (status_group IN ('pending', 'in_progress', 'ready', 'failed')),
    vcpu         INTEGER NOT NULL,
    ram_mb       INTEGER NOT NULL,
    disk_mb      INTEGER NOT NULL,
    envd_version TEXT NOT NULL,
    created_at   INTEGER NOT NULL,
    updated_at   INTEGER NOT NULL,
    finished_at  INTEGER
) STRICT;
CREATE INDEX env_builds_team ON env_builds (team_id);

-- Which build a tag of a template means. Append-only: the row of greatest id counts.
CREATE TABLE env_build_assignments (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    env_id     TEXT NOT NULL REFERENCES envs (id) ON DELETE CASCADE,
    build_id   TEXT NOT NULL REFERENCES env_builds (id) ON DELETE CASCADE,
    tag        TEXT NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;
CREATE INDEX env_build_assignments_tag ON env_build_assignments (env_id, tag, id);
CREATE INDEX env_build_assignments_build ON env_build_assignments (build_id);

-- Samples outlive their sandboxes, so they carry the team; `timestamp` is in seconds.
CREATE TABLE sandbox_metrics (
    sandbox_id   TEXT NOT NULL,
    timestamp    INTEGER NOT NULL,
    team_id      TEXT NOT NULL,
    cpu_count    INTEGER NOT NULL,
    cpu_used_pct REAL NOT NULL,
    mem_used     INTEGER NOT NULL,
    mem_total    INTEGER NOT NULL,
    mem_cache    INTEGER NOT NULL,
    disk_used    INTEGER NOT NULL,
    disk_total   INTEGER NOT NULL,
    PRIMARY KEY (sandbox_id, timestamp)
) STRICT, WITHOUT ROWID;
CREATE INDEX sandbox_metrics_timestamp ON sandbox_metrics (timestamp);
