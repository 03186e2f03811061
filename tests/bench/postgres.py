#!/usr/bin/env python3
"""
Our settings of PostgreSQL against Debian's defaults, on the same host, in turn: A B A B.

    sudo python3 tests/bench/postgres.py --name farm --host db2 --memory 3G --part large

Works on a lab that is up. The host's RAM limit is raised for the run, its own server stands still
meanwhile, and two scratch clusters run in turn, one with each configuration, ours as the states
would write it for that much RAM. Each has its own files: a cluster that changes hands would take
the pieces of log along that the other's settings kept, or threw away. Parts:

  small    pgbench on 75 MB, which every cache holds, read only and read-write
  large    900 MB: rows read in fifties and changed in twenties all over it, with so much log that
           checkpoints pass
  reports  queries that sort, group and join more than Debian's work_mem holds

Prints one line for each run, then the medians, and the median of what each pair of neighbours makes
of each other: a machine that slows down slows both. Each run starts warm: the server has answered
the same questions since it was started, and one run of each configuration doesn't count.
"""

import argparse
import json
import pathlib
import re
import statistics
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.farm.waiting import until  # noqa: E402 - the checkout is on the path now
from tests.lab import cgroups, farm, salt  # noqa: E402 - as above

PORT, FOLDER = 5440, "/var/tmp/postgres-bench"
OURS, DEBIANS = "ours", "Debian's"
CLUSTERS = {OURS: "bench_ours", DEBIANS: "bench_debians"}
UNITS = {"M": 1 << 20, "G": 1 << 30}
SCALES = {"small": 5, "large": 60, "reports": 1}
CLIENTS = 8
# Each client has rows of its own: none waits for another.
OWN = SCALES["large"] * 100_000 // CLIENTS
SOME = f"(SELECT :first + (random() * {OWN - 1})::int FROM generate_series(1, {{}}))"
SCRIPTS = {
    # A page of a site reads rows that lie anywhere.
    "reads": f"SELECT sum(abalance) FROM pgbench_accounts WHERE aid IN {SOME.format(50)};",
    # A background job.
    "changes": "UPDATE pgbench_accounts SET abalance = abalance + 1"
    f" WHERE aid IN {SOME.format(20)};",
}
# Each needs more than Debian's work_mem of 4 MB, or its double for hashes. The planner leaves out
# what nobody asks for: each query uses all that it sorts or groups.
REPORTS = {
    "distinct": "SELECT count(DISTINCT amount) FROM orders WHERE id <= 250000",
    "group": "SELECT max(total) FROM (SELECT amount % 300000 AS part, sum(customer) AS total"
    " FROM orders GROUP BY part) AS grouped",
    "join and group": "SELECT max(total) FROM (SELECT c.name, sum(o.amount) AS total FROM orders o"
    " JOIN customers c ON c.id = o.customer WHERE o.placed > '2027-06-01' GROUP BY c.name) AS s",
    "join": "SELECT max(o.amount), max(c.name) FROM orders o JOIN customers c ON c.id = o.customer",
    "window": "SELECT max(place) FROM (SELECT row_number() OVER (PARTITION BY customer"
    " ORDER BY amount) AS place FROM orders WHERE id <= 200000) AS sorted",
}
ORDERS = """
CREATE TABLE customers AS SELECT i AS id, repeat(md5(i::text), 2) AS name
 FROM generate_series(1, 400000) i;
CREATE TABLE orders AS SELECT i AS id, ((i::bigint * 7919) % 400000 + 1)::int AS customer,
 ((i::bigint * 104729) % 999983)::int AS amount,
 timestamp '2026-01-01' + i * interval '1 minute' AS placed FROM generate_series(1, 1000000) i;
CREATE INDEX ON orders (customer);
CREATE INDEX ON orders (placed);
ALTER TABLE customers ADD PRIMARY KEY (id);
VACUUM ANALYZE;
"""


class Bench:
    def __init__(self, options):
        self.options = options
        self.lab = farm.Lab(options.name, ROOT)
        self.host = self.lab.hosts[options.host]
        settings = salt.call(self.lab, options.host, "settings.get", "postgres")[options.host]
        self.version = settings["version"]
        self.programs = f"/usr/lib/postgresql/{self.version}/bin"

    def run(self, script):
        return self.host.run("sh", "-euc", script).stdout

    def sql(self, statement, database="bench"):
        return self.run(
            f"runuser -u postgres -- {self.programs}/psql -XqAt -v ON_ERROR_STOP=1 -p {PORT}"
            f" -d {database} <<'END'\n{statement}\nEND"
        ).strip()

    def limit(self, memory):
        cgroups.create(self.lab.name, self.host.name, memory)
        cgroups.repeat_limit(self.lab.name, self.host.name, memory)
        salt.call(self.lab, self.host.name, "saltutil.refresh_grains")
        # The minion reads its grains again in its own time; `tuning` must not go by the old ones.
        ram = ["grains.get", "hardware:ram_bytes"]
        until(120, lambda: salt.call(self.lab, self.host.name, *ram)[self.host.name] == memory)

    def set_up(self):
        self.limit(int(self.options.memory[:-1]) * UNITS[self.options.memory[-1]])
        source, target = "salt://postgres/files/saltern.conf", f"{FOLDER}/ours"
        self.run(
            f"systemctl stop pgbouncer postgresql@{self.version}-main; rm -rf {FOLDER};"
            f" mkdir {FOLDER}"
        )
        self.drop()
        for name in CLUSTERS.values():
            self.run(f"pg_createcluster {self.version} {name} -p {PORT} -- --data-checksums")
        salt.call(self.lab, self.host.name, "cp.get_template", source, target)
        drop = "^(listen_addresses|port|primary_|synchronous_standby|archive_command)"
        self.run(f"sed -Ei '/{drop}/d' {target}; echo \"archive_command = 'true'\" >>{target}")
        into = f"/etc/postgresql/{self.version}/{CLUSTERS[OURS]}/conf.d/saltern.conf"
        self.run(f"install -o postgres -m 0644 {target} {into}")
        print(self.run(f"grep -vE '^(#|$)' {target}"))

    def drop(self):
        """Remove the scratch clusters that there are."""
        for name in CLUSTERS.values():
            there = f"pg_lsclusters --no-header | grep -qE '^{self.version} +{name} '"
            self.run(f"if {there}; then pg_dropcluster {self.version} {name} --stop; fi")

    def tear_down(self):
        self.drop()
        self.run(f"rm -rf {FOLDER}; systemctl start postgresql@{self.version}-main pgbouncer")
        self.limit(self.host.memory)

    def use(self, settings):
        """Start the scratch cluster with one of the two configurations; the other one rests."""
        for name in CLUSTERS.values():
            self.run(f"pg_ctlcluster {self.version} {name} stop -m fast || [ $? -eq 2 ]")
        self.run(f"pg_ctlcluster {self.version} {CLUSTERS[settings]} start")

    def fill(self):
        self.sql("CREATE DATABASE bench", "postgres")
        self.pgbench(f"-i -q -s {SCALES[self.options.part]}")
        if self.options.part == "reports":
            self.sql(ORDERS)
        for name, statement in SCRIPTS.items():
            script = f"\\set first 1 + {OWN} * :client_id\n{statement}\n"
            self.run(f"cat >{FOLDER}/{name}.sql <<'END'\n{script}END")

    def pgbench(self, words):
        return self.run(
            f"runuser -u postgres -- {self.programs}/pgbench -p {PORT} {words} bench 2>&1"
        )

    def rate(self, words, seconds):
        """Transactions a second of a server with warm buffers and pieces of log to write again."""
        self.pgbench(f"-n -c {CLIENTS} -j 2 -T 3 {words}")
        self.sql("CHECKPOINT; SELECT pg_stat_reset_shared('bgwriter')")
        said = self.pgbench(f"-n -c {CLIENTS} -j 2 -T {seconds} {words}")
        return float(re.search(r"tps = ([\d.]+)", said)[1])

    def measure(self):
        """What one configuration does: a dictionary of figures, more is better."""
        seconds = self.options.seconds
        if self.options.part == "small":
            return {"read only": self.rate("-S", seconds), "read-write": self.rate("-N", seconds)}
        if self.options.part == "reports":
            return {name: 1000 / self.milliseconds(query) for name, query in REPORTS.items()}
        found = {name: self.rate(f"-f {FOLDER}/{name}.sql", seconds) for name in SCRIPTS}
        passed = self.sql("SELECT checkpoints_timed + checkpoints_req FROM pg_stat_bgwriter")
        print(f"  checkpoints: {passed}")
        return found

    def milliseconds(self, query):
        """The median of several, after two that warm up."""
        asked = f"EXPLAIN (ANALYZE, FORMAT JSON) {query}"
        took = [json.loads(self.sql(asked))[0]["Execution Time"] for _ in range(7)]
        return statistics.median(took[2:])

    def compare(self):
        runs = {OURS: [], DEBIANS: []}
        for settings in runs:
            self.use(settings)
            self.fill()
        for turn in range(self.options.turns + 1):
            for settings, found in runs.items():
                self.use(settings)
                figures = self.measure()
                warm = "" if turn else " (to warm up)"
                told = ", ".join(f"{name} {figure:,.1f}/s" for name, figure in figures.items())
                print(f"{settings}{warm}: {told}", flush=True)
                if turn:
                    found.append(figures)
        table(runs)


def table(runs):
    ratios = []
    print("\n| | Debian's | ours | ratio |\n|---|---|---|---|")
    for name in runs[OURS][0]:
        own, theirs = ([run[name] for run in runs[who]] for who in (OURS, DEBIANS))
        ratios.append(statistics.median(a / b for a, b in zip(own, theirs, strict=True)))
        print(f"| {name} | {statistics.median(theirs):,.2f}/s | {statistics.median(own):,.2f}/s"
              f" | {ratios[-1]:.2f} |")  # fmt: skip
    print(f"\nmean {statistics.geometric_mean(ratios):.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--name", default="farm")
    parser.add_argument("--host", default="db2")
    parser.add_argument("--memory", default="3G")
    parser.add_argument("--part", choices=tuple(SCALES), required=True)
    parser.add_argument("--seconds", type=int, default=20, help="of a run")
    parser.add_argument("--turns", type=int, default=5)
    bench = Bench(parser.parse_args())
    try:
        bench.set_up()
        bench.compare()
    finally:
        bench.tear_down()


if __name__ == "__main__":
    main()
