-- The manifest, made from the log. `files`, `manifest_metadata`, `snapshots` and `versions` are for people; the rest may change.

CREATE TABLE manifest_metadata(
  version        INTEGER NOT NULL,   -- of this schema
  repository     TEXT NOT NULL,
  last_epoch     INTEGER NOT NULL,   -- its epoch: how often the log was repaired, more or less
  last_sequence  INTEGER NOT NULL,   -- the last log entry that has been applied
  last_sha256    BLOB NOT NULL CHECK (length(last_sha256) = 32),
  last_backup    TEXT,               -- when the newest snapshot was taken
  immich_version TEXT,
  totals         TEXT NOT NULL       -- of what stands now, as in a snapshot fact
) STRICT;

CREATE TABLE folder(
  id       INTEGER PRIMARY KEY,
  external TEXT NOT NULL,            -- name of the external library, empty for the media location; `%config`, `%postgres`
  path     TEXT NOT NULL,            -- canonical text, empty for the root
  UNIQUE (external, path)
) STRICT;

CREATE TABLE version(
  folder   INTEGER NOT NULL REFERENCES folder(id),
  name     TEXT NOT NULL,
  since    INTEGER NOT NULL,         -- the log entry that stored it
  until    INTEGER CHECK (until >= since), -- the log entry that replaced or archived it; `since`: it never stood (see `doubtful` in the log)
  sha256   BLOB NOT NULL CHECK (length(sha256) = 32),
  sha1     BLOB NOT NULL CHECK (length(sha1) = 20),
  size     INTEGER NOT NULL CHECK (size >= 0),
  mtime_ns INTEGER NOT NULL,
  ctime_ns INTEGER,                  -- NULL: too young to be trusted
  mode     INTEGER NOT NULL,
  key      TEXT,                     -- the object, where it is not the path's home
  etag     TEXT,
  damaged  INTEGER,                  -- the log entry that says so
  PRIMARY KEY (folder, name, since)
) STRICT, WITHOUT ROWID;

CREATE TABLE snapshot(
  sequence   INTEGER PRIMARY KEY,    -- the log entry that commits it: it holds what stands there
  id         TEXT NOT NULL UNIQUE,   -- its run
  taken_at   TEXT NOT NULL,
  label      TEXT,
  files      INTEGER NOT NULL,
  bytes      INTEGER NOT NULL,
  fact       TEXT NOT NULL           -- all that the log says of it
) STRICT;

CREATE TABLE run(
  id            TEXT PRIMARY KEY,
  writer        TEXT NOT NULL,
  first_entry   INTEGER NOT NULL,
  last_entry    INTEGER NOT NULL,
  started_at    TEXT NOT NULL,
  last_entry_at TEXT NOT NULL,       -- the heartbeat
  outcome       TEXT,                -- snapshot, interrupted, withheld, failed, died; NULL: it may be running
  reason        TEXT,
  gone          INTEGER,             -- originals gone, where that withheld the snapshot
  changed       INTEGER,             -- originals changed, likewise
  fact          TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- Of a run in shards, while it is not over: which of them are done, ...
CREATE TABLE shard(
  run           TEXT NOT NULL,
  part          INTEGER NOT NULL,
  writer        TEXT NOT NULL,
  last_entry_at TEXT NOT NULL,       -- its heartbeat
  fact          TEXT,                -- what it did; NULL: it is not done
  PRIMARY KEY (run, part)
) STRICT, WITHOUT ROWID;

-- ... which contents each is about to store, or has stored, ...
CREATE TABLE claim(
  kind     INTEGER NOT NULL CHECK (kind IN (0, 1)), -- 0: the first 8 bytes of a SHA-256 (as a signed number); 1: a size in bytes
  value    INTEGER NOT NULL,
  part     INTEGER NOT NULL,
  external TEXT NOT NULL,            -- as in `folder`
  path     TEXT NOT NULL,
  PRIMARY KEY (kind, value)
) STRICT, WITHOUT ROWID;

-- ... and the paths that they leave to the one that ends the run.
CREATE TABLE remainder(
  run      TEXT NOT NULL,
  external TEXT NOT NULL,            -- as in `folder`
  path     TEXT NOT NULL,
  PRIMARY KEY (run, external, path)
) STRICT, WITHOUT ROWID;

CREATE TABLE verification(
  sequence INTEGER NOT NULL,
  kind     TEXT NOT NULL CHECK (kind IN ('listed', 'read')),
  at       TEXT NOT NULL,
  parts    INTEGER NOT NULL,         -- 1 of so many
  part     INTEGER NOT NULL,
  covers   INTEGER NOT NULL,         -- the last log entry whose objects were looked at; others may have written since
  objects  INTEGER NOT NULL,
  damaged  INTEGER NOT NULL,
  PRIMARY KEY (sequence, kind)
) STRICT, WITHOUT ROWID;

CREATE TABLE damage(
  key      TEXT PRIMARY KEY,
  since    INTEGER NOT NULL,
  problem  TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE dump(
  key      TEXT PRIMARY KEY,
  sequence INTEGER NOT NULL,         -- the log entry that says so
  taken_at TEXT NOT NULL,
  run      TEXT,                     -- that took it
  pruned   INTEGER,                  -- the log entry that says that it is not needed any more
  fact     TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE drill(
  sequence INTEGER PRIMARY KEY,
  at       TEXT NOT NULL,
  fact     TEXT NOT NULL
) STRICT;

-- Repairs of the log.
CREATE TABLE epoch(
  number   INTEGER PRIMARY KEY,
  sequence INTEGER NOT NULL,         -- the log entry that opens it
  writer   TEXT NOT NULL,
  fact     TEXT NOT NULL
) STRICT;

-- Objects that the log gave up and that may still be there; empty once a prune has come to its end.
CREATE TABLE pruned(
  key      TEXT PRIMARY KEY,
  sequence INTEGER NOT NULL          -- the log entry that says so
) STRICT, WITHOUT ROWID;

CREATE TABLE manifest_copy(
  key      TEXT PRIMARY KEY,
  sequence INTEGER NOT NULL,
  sha256   BLOB NOT NULL,
  rows     INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Every content that a path ever had.
CREATE VIEW versions AS
  SELECT CASE f.external WHEN '' THEN '' WHEN '%config' THEN 'config/' WHEN '%postgres' THEN 'postgres/' ELSE 'external/' || f.external || '/' END
           || CASE f.path WHEN '' THEN '' ELSE f.path || '/' END || v.name AS file_path,
         lower(hex(v.sha256)) AS checksum, lower(hex(v.sha1)) AS sha1, v.size, v.mtime_ns, v.mode,
         coalesce(v.key, CASE f.external WHEN '' THEN 'library/' WHEN '%config' THEN 'config/' WHEN '%postgres' THEN 'postgres/' ELSE 'external/' || f.external || '/' END
           || CASE f.path WHEN '' THEN '' ELSE f.path || '/' END || v.name) AS object_key,
         v.since, v.until, v.damaged IS NOT NULL AS damaged
    FROM version v JOIN folder f ON f.id = v.folder;

-- One row a path: what it holds, or held last.
CREATE VIEW files AS
  SELECT CASE f.external WHEN '' THEN '' WHEN '%config' THEN 'config/' WHEN '%postgres' THEN 'postgres/' ELSE 'external/' || f.external || '/' END
           || CASE f.path WHEN '' THEN '' ELSE f.path || '/' END || v.name AS file_path,
         lower(hex(v.sha256)) AS checksum, v.size, v.until IS NOT NULL AS archived, v.mtime_ns
    FROM version v JOIN folder f ON f.id = v.folder
   WHERE v.since = (SELECT max(w.since) FROM version w
                    WHERE w.folder = v.folder AND w.name = v.name AND (w.until IS NULL OR w.until > w.since));

CREATE VIEW dumps AS SELECT key, taken_at, pruned IS NOT NULL AS pruned FROM dump;

CREATE VIEW snapshots AS SELECT id, taken_at, label, files, bytes, sequence FROM snapshot;
