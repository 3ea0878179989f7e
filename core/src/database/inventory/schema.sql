-- What one dump names. Made while the dump is read, thrown away when nobody asks any more. Times are in µs since 1970, UTC.

CREATE TABLE summary(
  format    INTEGER NOT NULL,        -- of this schema
  summary   TEXT NOT NULL,
  rows      TEXT NOT NULL,           -- of each table, by name
  locations TEXT NOT NULL
) STRICT;

CREATE TABLE asset(
  number     INTEGER PRIMARY KEY,    -- in the order of the dump
  id         BLOB NOT NULL CHECK (length(id) = 16),
  owner      BLOB,
  type       TEXT,
  name       TEXT NOT NULL,          -- as it was uploaded
  checksum   BLOB,
  of_content INTEGER NOT NULL,       -- whether the checksum is of the bytes, not of the path
  live_video BLOB,
  library    BLOB,
  external   INTEGER NOT NULL,
  offline    INTEGER NOT NULL,
  deleted_at INTEGER,
  status     TEXT,
  visibility TEXT,
  local_time INTEGER,                -- when it was taken, by the clock on the wall there
  created_at INTEGER,                -- when it was taken
  taken      INTEGER NOT NULL        -- local_time, else created_at, else less than all others: what lists are ordered by
) STRICT;

CREATE TABLE person(number INTEGER PRIMARY KEY, id BLOB NOT NULL, owner BLOB, name TEXT NOT NULL) STRICT;
CREATE TABLE face(asset BLOB NOT NULL, person BLOB NOT NULL) STRICT;
CREATE TABLE library(number INTEGER PRIMARY KEY, id BLOB NOT NULL, name TEXT NOT NULL, owner BLOB, import_paths TEXT NOT NULL) STRICT;
CREATE TABLE album(number INTEGER PRIMARY KEY, id BLOB NOT NULL, name TEXT NOT NULL, owner BLOB, deleted INTEGER NOT NULL) STRICT;
CREATE TABLE album_owner(album BLOB NOT NULL, owner BLOB NOT NULL) STRICT;
CREATE TABLE album_asset(album BLOB NOT NULL, asset BLOB NOT NULL) STRICT;
CREATE TABLE user(
  number        INTEGER PRIMARY KEY,
  id            BLOB NOT NULL,
  email         TEXT NOT NULL,
  name          TEXT NOT NULL,
  storage_label TEXT,
  admin         INTEGER NOT NULL,
  deleted_at    INTEGER
) STRICT;

-- Folders in the order of (external, path), and in each its files in the order of their names: `named.number` counts through all of them.
CREATE TABLE folder(
  id       INTEGER PRIMARY KEY,
  external TEXT NOT NULL,            -- name of the external library, empty for the media location
  path     TEXT NOT NULL,            -- canonical text, empty for the root
  first    INTEGER NOT NULL,         -- `number` of its first file
  last     INTEGER NOT NULL,
  UNIQUE (external, path)
) STRICT;

CREATE TABLE named(
  number  INTEGER PRIMARY KEY,
  folder  INTEGER NOT NULL,
  name    TEXT NOT NULL,
  thing   INTEGER NOT NULL,          -- 0 asset, 1 sidecar, 2 profile picture, 3 derived
  offline INTEGER NOT NULL,
  asset   BLOB,
  sha1    BLOB
) STRICT;

-- What lies outside of all that is backed up.
CREATE TABLE outside(
  number  INTEGER PRIMARY KEY,
  thing   INTEGER NOT NULL,
  offline INTEGER NOT NULL,
  asset   BLOB,
  sha1    BLOB,
  path    BLOB NOT NULL              -- as the dump has it
) STRICT;
