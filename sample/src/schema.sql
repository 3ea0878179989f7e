-- The part of Immich 3's database that says which files there are, whose they are and what they mean. Immich has more tables and columns,
-- and keeps `smart_search.embedding` as `vector(512)`, for which PostgreSQL needs an extension that most machines do not have.

CREATE EXTENSION cube;
CREATE EXTENSION earthdistance;

CREATE TYPE assets_status_enum AS ENUM ('active', 'trashed', 'deleted');
CREATE TYPE asset_visibility_enum AS ENUM ('archive', 'timeline', 'hidden', 'locked');
CREATE TYPE asset_checksum_algorithm_enum AS ENUM ('sha1', 'sha1-path');
CREATE TYPE album_user_role_enum AS ENUM ('owner', 'editor', 'viewer');

CREATE TABLE system_metadata (key varchar PRIMARY KEY, value jsonb NOT NULL);

CREATE TABLE version_history (id uuid PRIMARY KEY, "createdAt" timestamptz NOT NULL, version varchar NOT NULL);

CREATE TABLE "user" (
  id uuid PRIMARY KEY,
  email varchar NOT NULL UNIQUE,
  name varchar NOT NULL,
  "isAdmin" boolean NOT NULL DEFAULT false,
  "storageLabel" varchar UNIQUE,
  "profileImagePath" varchar NOT NULL DEFAULT '',
  "createdAt" timestamptz NOT NULL,
  "deletedAt" timestamptz
);

-- External libraries: the sample has none.
CREATE TABLE library (
  id uuid PRIMARY KEY,
  name varchar NOT NULL,
  "ownerId" uuid NOT NULL REFERENCES "user" ON DELETE CASCADE,
  "importPaths" text[] NOT NULL,
  "exclusionPatterns" text[] NOT NULL
);

CREATE TABLE asset (
  id uuid PRIMARY KEY,
  "ownerId" uuid NOT NULL REFERENCES "user" ON DELETE CASCADE,
  type varchar NOT NULL,
  "originalPath" varchar NOT NULL,
  "originalFileName" varchar NOT NULL,
  checksum bytea NOT NULL,
  "checksumAlgorithm" asset_checksum_algorithm_enum NOT NULL,
  "fileCreatedAt" timestamptz NOT NULL,
  "fileModifiedAt" timestamptz NOT NULL,
  "localDateTime" timestamptz NOT NULL,
  duration integer,
  width integer,
  height integer,
  "livePhotoVideoId" uuid REFERENCES asset ON DELETE SET NULL,
  "libraryId" uuid REFERENCES library ON DELETE CASCADE,
  "isExternal" boolean NOT NULL DEFAULT false,
  "isOffline" boolean NOT NULL DEFAULT false,
  "deletedAt" timestamptz,
  status assets_status_enum NOT NULL DEFAULT 'active',
  visibility asset_visibility_enum NOT NULL DEFAULT 'timeline',
  UNIQUE ("ownerId", checksum)
);

CREATE TABLE asset_file (
  id uuid PRIMARY KEY,
  "assetId" uuid NOT NULL REFERENCES asset ON DELETE CASCADE,
  type varchar NOT NULL,
  path varchar NOT NULL
);

CREATE TABLE asset_exif (
  "assetId" uuid PRIMARY KEY REFERENCES asset ON DELETE CASCADE,
  make varchar,
  model varchar,
  "fileSizeInByte" bigint,
  "dateTimeOriginal" timestamptz,
  latitude double precision,
  longitude double precision,
  description text NOT NULL DEFAULT '',
  rating integer
);

-- A restore that leaves the search path empty ends here: `type "earth" does not exist`.
CREATE INDEX "IDX_geodata_gist_earthcoord" ON asset_exif USING gist (ll_to_earth(latitude, longitude));

CREATE TABLE smart_search ("assetId" uuid PRIMARY KEY REFERENCES asset ON DELETE CASCADE, embedding real[] NOT NULL);

CREATE TABLE person (
  id uuid PRIMARY KEY,
  "ownerId" uuid NOT NULL REFERENCES "user" ON DELETE CASCADE,
  name varchar NOT NULL DEFAULT '',
  "birthDate" date,
  "thumbnailPath" varchar NOT NULL DEFAULT ''
);

CREATE TABLE asset_face (
  id uuid PRIMARY KEY,
  "assetId" uuid NOT NULL REFERENCES asset ON DELETE CASCADE,
  "personId" uuid REFERENCES person ON DELETE SET NULL,
  "boundingBoxX1" integer NOT NULL,
  "boundingBoxY1" integer NOT NULL,
  "boundingBoxX2" integer NOT NULL,
  "boundingBoxY2" integer NOT NULL,
  "deletedAt" timestamptz
);

CREATE TABLE album (
  id uuid PRIMARY KEY,
  "albumName" varchar NOT NULL,
  description text NOT NULL DEFAULT '',
  "createdAt" timestamptz NOT NULL,
  "deletedAt" timestamptz
);

CREATE TABLE album_user (
  "albumId" uuid REFERENCES album ON DELETE CASCADE,
  "userId" uuid REFERENCES "user" ON DELETE CASCADE,
  role album_user_role_enum NOT NULL DEFAULT 'editor',
  PRIMARY KEY ("albumId", "userId")
);

CREATE TABLE album_asset (
  "albumId" uuid REFERENCES album ON DELETE CASCADE,
  "assetId" uuid REFERENCES asset ON DELETE CASCADE,
  PRIMARY KEY ("albumId", "assetId")
);
