-- Fills an Immich 3.1 database with :assets assets more, each with its details, two pictures made from it, what it shows as a vector, and a face.
-- Everything follows from an asset's number. No file of them exists.

-- No triggers and no checks of foreign keys: that is all right as it is written here.
SET session_replication_role = replica;
SET synchronous_commit = off;
SET work_mem = '256MB';
SET maintenance_work_mem = '512MB';

BEGIN;

-- To fill a table and index it afterwards is faster. Those of vectors take longer than all the rest: only where they are wanted.
CREATE TEMPORARY TABLE dropped ON COMMIT DROP AS
SELECT indexrelid::regclass::text AS name, pg_get_indexdef(indexrelid) AS definition
FROM pg_index
WHERE indrelid IN ('public.asset'::regclass, 'public.asset_exif'::regclass, 'public.asset_file'::regclass, 'public.asset_face'::regclass,
                   'public.smart_search'::regclass, 'public.face_search'::regclass)
  AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid);
DO $$ BEGIN EXECUTE (SELECT 'DROP INDEX ' || string_agg(name, ', ') FROM dropped); END $$;

CREATE TEMPORARY TABLE filled ON COMMIT DROP AS
SELECT n, md5('asset ' || n)::uuid AS id, md5('face ' || n)::uuid AS face, md5('file ' || n)::uuid AS file, owner.id AS owner,
       timestamptz '2005-01-01 00:00:00Z' + n * interval '37 minutes' + (hashint4(n::int) & 1023) * interval '1 second' AS taken
FROM generate_series(1, :assets) AS n
JOIN (SELECT id, row_number() OVER (ORDER BY id) AS place, count(*) OVER () AS owners FROM public."user" WHERE "deletedAt" IS NULL) AS owner
  ON owner.place = n % owner.owners + 1;
ANALYZE filled;

INSERT INTO public.asset (id, "ownerId", type, "originalPath", "fileCreatedAt", "fileModifiedAt", checksum, "updatedAt", "createdAt", "originalFileName", thumbhash,
                          "localDateTime", width, height, "checksumAlgorithm")
SELECT id, owner, CASE WHEN n % 20 = 0 THEN 'VIDEO' ELSE 'IMAGE' END,
       format('/data/upload/%s/%s/%s/%s.%s', owner, left(file::text, 2), substr(file::text, 3, 2), file, CASE WHEN n % 20 = 0 THEN 'mp4' ELSE 'jpg' END),
       taken, taken, substr(sha256(('content ' || n)::bytea), 1, 20), taken, taken, format('IMG_%s.%s', n, CASE WHEN n % 20 = 0 THEN 'mp4' ELSE 'jpg' END),
       substr(sha256(('thumb ' || n)::bytea), 1, 21), taken, 4032, 3024, 'sha1'
FROM filled;

INSERT INTO public.asset_exif ("assetId", make, model, "exifImageWidth", "exifImageHeight", "fileSizeInByte", orientation, "dateTimeOriginal", "modifyDate", "lensModel",
                               "fNumber", "focalLength", iso, latitude, longitude, city, state, country, "exposureTime", "timeZone", colorspace, "bitsPerSample")
SELECT id, 'LabCam', 'Mk ' || n % 7, 4032, 3024, 1000000 + (hashint4(n::int) & 4194303), '1', taken, taken, 'LabCam wide camera 4.25mm f/1.8',
       1.8, 4.25, 50 * (n % 30 + 1), 35 + n % 2000 * 0.01, -10 + n % 3000 * 0.01, 'City ' || n % 300, 'State ' || n % 40, 'Country ' || n % 20, '1/100', 'UTC+1', 'sRGB', 8
FROM filled WHERE n % 3 > 0
UNION ALL
SELECT id, NULL, NULL, 4032, 3024, 1000000 + (hashint4(n::int) & 4194303), NULL, taken, taken, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL
FROM filled WHERE n % 3 = 0;

INSERT INTO public.asset_file (id, "assetId", "createdAt", "updatedAt", type, path)
SELECT md5(kind || n)::uuid, id, taken, taken, kind,
       format('/data/thumbs/%s/%s/%s/%s_%s.%s', owner, left(id::text, 2), substr(id::text, 3, 2), id, kind, CASE kind WHEN 'preview' THEN 'jpeg' ELSE 'webp' END)
FROM filled CROSS JOIN (VALUES ('preview'), ('thumbnail')) AS kinds (kind);

INSERT INTO public.asset_face ("assetId", "imageWidth", "imageHeight", "boundingBoxX1", "boundingBoxY1", "boundingBoxX2", "boundingBoxY2", id, "updatedAt")
SELECT id, 1440, 1080, n % 700, n % 500, n % 700 + 200, n % 500 + 220, face, taken FROM filled;

-- 512 numbers for each would take minutes: the sums of two of these are as different, and as hard to compress.
CREATE TEMPORARY TABLE base ON COMMIT DROP AS
SELECT base, (SELECT array_agg(hashint8(base * 512 + place) / 2147483648.0 ORDER BY place)::real[]::public.vector(512) FROM generate_series(1, 512) AS place) AS vector
FROM generate_series(0, 1999) AS base;
CREATE UNIQUE INDEX ON base (base);
ANALYZE base;

INSERT INTO public.smart_search ("assetId", embedding)
SELECT id, public.l2_normalize(one.vector + other.vector) FROM filled JOIN base AS one ON one.base = n % 1000 JOIN base AS other ON other.base = 1000 + n / 1000 % 1000;
INSERT INTO public.face_search ("faceId", embedding)
SELECT face, public.l2_normalize(one.vector - other.vector) FROM filled JOIN base AS one ON one.base = n % 1000 JOIN base AS other ON other.base = 1000 + n / 1000 % 1000;

DO $$
DECLARE definition text;
BEGIN
  FOR definition IN SELECT d.definition FROM dropped AS d WHERE d.definition NOT LIKE '% USING hnsw %' LOOP EXECUTE definition; END LOOP;
END $$;
\if :vector_indexes
DO $$
DECLARE definition text;
BEGIN
  FOR definition IN SELECT d.definition FROM dropped AS d WHERE d.definition LIKE '% USING hnsw %' LOOP EXECUTE definition; END LOOP;
END $$;
\endif
COMMIT;
ANALYZE;
