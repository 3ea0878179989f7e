-- Run once by the drill's PostgreSQL, by its superuser, before anybody else gets in. A dump brings functions along that run while it is loaded, so it is loaded by a
-- role that may do nothing but that; the extensions, which take a superuser, are made here. Those that the server lacks are left out: the drill says so.
CREATE ROLE drill LOGIN;
CREATE DATABASE drill OWNER drill;
\connect drill
DO $$
DECLARE wanted text;
BEGIN
    FOREACH wanted IN ARRAY ARRAY['uuid-ossp', 'unaccent', 'cube', 'earthdistance', 'pg_trgm', 'vector', 'vchord'] LOOP
        IF EXISTS (SELECT FROM pg_available_extensions WHERE name = wanted) THEN
            EXECUTE format('CREATE EXTENSION IF NOT EXISTS %I', wanted);
        END IF;
    END LOOP;
END
$$;
