#!/bin/sh
# Starts PostgreSQL in its container as the official image does: who is inside is trusted, who comes over the network needs the password.
set -eu
PGDATA=/var/lib/postgresql/data
as_postgres() { setpriv --reuid=postgres --regid=postgres --init-groups "$@"; }

install -d -o postgres -g postgres -m 0775 /var/run/postgresql
if [ ! -e "$PGDATA/PG_VERSION" ]; then
  if [ -n "${POSTGRES_PASSWORD_FILE:-}" ]; then POSTGRES_PASSWORD=$(cat "$POSTGRES_PASSWORD_FILE"); fi
  user=${POSTGRES_USER:-postgres}
  database=${POSTGRES_DB:-$user}
  password=$(mktemp)
  printf '%s\n' "$POSTGRES_PASSWORD" >"$password"
  chown postgres "$password"
  as_postgres initdb -D "$PGDATA" --no-sync --encoding=UTF8 --locale=C.UTF-8 --auth-local=trust --auth-host=scram-sha-256 \
    --pwfile="$password" --username="$user"
  rm "$password"
  if [ "$database" != postgres ]; then
    # Not by a server: one that is up and then goes away again would look ready.
    printf 'CREATE DATABASE "%s"\n' "$database" | as_postgres postgres --single -F -j -D "$PGDATA" postgres >/dev/null
  fi
fi
# One socket where the official image has it, one where the programs here look for it.
exec setpriv --reuid=postgres --regid=postgres --init-groups postgres -D "$PGDATA" \
  -c listen_addresses='*' -c unix_socket_directories=/var/run/postgresql,/tmp -c fsync=off "$@"
