-- pgbench's own transaction (TPC-B-like) and a row that says which one of which client it was, sent as one message: the
-- client hears of it once, when it is committed.
\set aid random(1, 100000)
\set tid random(1, 10)
\set delta random(-5000, 5000)
\set number :number + 1
BEGIN\; UPDATE pgbench_accounts SET abalance = abalance + :delta WHERE aid = :aid\; UPDATE pgbench_tellers SET tbalance = tbalance + :delta WHERE tid = :tid\; UPDATE pgbench_branches SET bbalance = bbalance + :delta WHERE bid = 1\; INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES (:tid, 1, :aid, :delta, CURRENT_TIMESTAMP)\; INSERT INTO acknowledged (client, number) VALUES (:client_id, :number)\; END;
