# Runs once, as the user postgres, within the unpacked packages: makes the database with pgbench's tables in it, so that
# the guest, which is slow under emulation, only has to start it.
set -e
bin=$(echo /usr/lib/postgresql/*/bin)
data=/var/lib/postgresql/data
"$bin/initdb" -D "$data" -U postgres -A trust --wal-segsize=1 --locale=C.UTF-8 -E UTF8 --no-sync --no-instructions
# Durability is as PostgreSQL has it (fsync, full_page_writes and synchronous_commit are on); the rest is for a guest
# with 256 MiB and one processor.
cat >> "$data/postgresql.conf" <<'EOF'
listen_addresses = '*'
unix_socket_directories = '/tmp'
shared_buffers = 16MB
min_wal_size = 8MB
max_wal_size = 32MB
max_connections = 20
dynamic_shared_memory_type = mmap
jit = off
EOF
echo 'host all all 0.0.0.0/0 trust' >> "$data/pg_hba.conf"
"$bin/pg_ctl" -D "$data" -w -l /tmp/prepare.log -o '-c listen_addresses= -c fsync=off' start
"$bin/pgbench" -h /tmp -U postgres -i -s 1 -q postgres
# No key: a transaction that was done twice shall show.
"$bin/psql" -h /tmp -U postgres -c 'create table acknowledged (client int, number bigint)' postgres
"$bin/pg_ctl" -D "$data" -w -m fast stop
rm /tmp/prepare.log
