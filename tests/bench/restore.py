#!/usr/bin/env python3
"""
How long it takes to back up and bring back so much data, and how much is lost if every database
host burns: RTO and RPO.

    sudo python3 tests/bench/restore.py --name farm --gigabytes 1

Works on a lab that is up, with db1, db2 and backup1. Fills the example site's database, makes a
full backup, waits until a fresh commit is on the backup host by itself, restores into a scratch
place (`backup.verify`), one table, and the whole cluster over db1's, then copies db2 afresh. Prints
a table. What it filled in is removed at the end.
"""

import argparse
import pathlib
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.lab import farm, salt  # noqa: E402 - the checkout is on the path now

SITE, PRIMARY, REPLICA, BACKUP = "newsroom", "db1", "db2", "backup1"
# A row takes about 1 kB that doesn't pack well.
FILL = """
CREATE TABLE bench_restore AS SELECT i AS id, (SELECT string_agg(md5(random()::text || i || n), '')
 FROM generate_series(1, 29) n) AS text FROM generate_series(1, {rows}) i;
ALTER TABLE bench_restore ADD PRIMARY KEY (id);
ALTER TABLE bench_restore OWNER TO newsroom;
"""


class Bench:
    def __init__(self, options):
        self.options = options
        self.lab = farm.Lab(options.name, ROOT)
        self.rows = []

    def call(self, host, *words):
        options = ["-t", "30"]
        found = salt.call(self.lab, host, *words, options=options).get(host)
        if not isinstance(found, dict):
            sys.exit(f"{host} {' '.join(words)}: {found}")
        return found

    def psql(self, sql, host=PRIMARY):
        command = [
            "runuser",
            "-u",
            "postgres",
            "--",
            "psql",
            "-XqAt",
            "-v",
            "ON_ERROR_STOP=1",
            SITE,
        ]
        return self.lab.host(host).run(*command, stdin=sql).stdout.strip()

    def note(self, what, seconds):
        print(f"{what}: {seconds:.1f} s", flush=True)
        self.rows.append((what, seconds))

    def measure(self):
        began = time.monotonic()
        # A row of the table is a bit more than 1 kB on disk.
        self.psql(FILL.format(rows=int(self.options.gigabytes * 920_000)))
        size = self.psql("SELECT pg_size_pretty(pg_database_size(current_database()))")
        print(f"filled in {time.monotonic() - began:.0f} s: {size}")
        self.note("full backup", self.call(BACKUP, "backup.run", "full")["seconds"])
        self.note("a commit is on the backup host by itself after", self.until_archived())
        verified = self.call(BACKUP, "backup.verify")
        self.note(
            "restored into a scratch place, until it answers", verified["restored_after_seconds"]
        )
        self.note("the whole verification", verified["seconds"])
        self.psql("DROP TABLE bench_restore")
        told = self.call(
            BACKUP, "backup.restore", SITE, "table=bench_restore", f"time={self.before_drop}"
        )
        self.note("a dropped table, until it is back", told["seconds"])
        told = self.call(PRIMARY, "backup.restore", "force=True")
        self.note("the whole cluster over the old one", told["seconds"])
        self.call(REPLICA, "database.clone", "replace=True")

    def until_archived(self):
        """Seconds until a commit's piece of the log has arrived, with nothing else going on."""
        self.before_drop = self.psql("SELECT date_trunc('second', now()) + '1 s'")
        time.sleep(1.5)
        began = time.monotonic()
        # At the very end of a piece its name would be that of one that was sent long ago.
        self.psql("SELECT pg_logical_emit_message(true, 'bench', 'a commit')")
        name = self.psql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())")
        there = f"SELECT coalesce(last_archived_wal >= '{name}', false) FROM pg_stat_archiver"
        while self.psql(there) != "t":
            if time.monotonic() - began > 300:
                sys.exit(f"{name} wasn't archived in 300 s")
            time.sleep(0.5)
        return time.monotonic() - began

    def tear_down(self):
        self.psql("DROP TABLE IF EXISTS bench_restore")


def main():
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--name", default="farm")
    parser.add_argument("--gigabytes", type=float, default=1)
    bench = Bench(parser.parse_args())
    try:
        bench.measure()
    finally:
        bench.tear_down()
    print("\n| | seconds |\n|---|---|")
    for what, seconds in bench.rows:
        print(f"| {what} | {seconds:.1f} |")


if __name__ == "__main__":
    main()
