-- What sandboxes log. Lines outlive their sandboxes, so they carry the team. `level` is 0 for debug
-- to 3 for error, `fields` a JSON object of texts. `id` is the order of arrival and is never reused:
-- the oldest lines go first when there are too many.
CREATE TABLE sandbox_logs (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    sandbox_id TEXT NOT NULL,
    timestamp  INTEGER NOT NULL,
    sequence   INTEGER NOT NULL,
    team_id    TEXT NOT NULL,
    level      INTEGER NOT NULL,
    logger     TEXT NOT NULL,
    message    TEXT NOT NULL,
    fields     TEXT NOT NULL
) STRICT;
-- A line that is delivered again is kept once.
CREATE UNIQUE INDEX sandbox_logs_order ON sandbox_logs (sandbox_id, timestamp, sequence);
CREATE INDEX sandbox_logs_timestamp ON sandbox_logs (timestamp);
