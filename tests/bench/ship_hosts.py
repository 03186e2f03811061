#!/usr/bin/env python3
"""
How the time of a ship grows with the hosts.

    sudo python3 tests/bench/ship_hosts.py [--hosts 2 20 50] [--turns 3]

Needs no lab. A real master and so many real minions on loopback, each in a box of its own with its
site's folder, mirror, emperor, slots and nginx; one PostgreSQL for all. `salt '*' deploy.ship`
brings them release after release with the same dependencies and one migration more, which must run
once. All hosts share this machine's cores: a farm, whose hosts have their own, is faster. Prints
a table of medians. Everything that it starts ends with it.
"""

import argparse
import contextlib
import json
import os
import pathlib
import signal
import statistics
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.functional import apphost, minions, postgres  # noqa: E402 - the path is set only now
from tests.functional.box import wait_for  # noqa: E402 - as above
from tests.functional.project import Project  # noqa: E402 - as above
from tests.lab import machine, output, testing  # noqa: E402 - as above

# Below the ports that the kernel gives to the minions' own connections.
FIRST_PORT = 21001
# Of the RAM that is free, what further hosts may take.
SHARE = 0.9
MIGRATION = """
from django.db import migrations
class Migration(migrations.Migration):
    dependencies = [("things", "{before}")]
    operations = [migrations.RunSQL("INSERT INTO runs VALUES ({turn})")]
"""


def with_the_tests_python():
    """Go on with the Python that has Salt, once the machine has what the functional tests need."""
    machine.check_root()
    machine.provide("virtualenv", "functional")
    python = testing.virtualenv(ROOT)
    if pathlib.Path(sys.prefix) != python.parents[1]:
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # beside the checkout's sources
        os.execv(python, [str(python), *sys.argv])


def free_memory():
    """The bytes that programs could still have."""
    for line in pathlib.Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    raise OSError("/proc/meminfo doesn't tell MemAvailable.")


@contextlib.contextmanager
def watched_memory():
    """Look again and again how much is free; yields the list that it is noted in."""
    seen, over = [free_memory()], threading.Event()

    def watch():
        while not over.wait(0.2):
            seen.append(free_memory())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield seen
    finally:
        over.set()
        watcher.join()


class Bench:
    """The farm on this machine, and its ships. What it starts is closed by the stack ``ended``."""

    def __init__(self, folder, names, turns, ended):
        self.folder, self.turns, self.ended = folder, turns, ended
        self.hosts, self.ships, self.memory = {}, 0, free_memory()
        needs = {"requirements.txt": "django==5.2.*\npsycopg[binary]\n"}
        self.project = Project(folder / "project", **needs)
        (folder / "postgres").mkdir()
        self.server = self.keep(postgres.Server(folder / "postgres"))
        self.server.sql("CREATE TABLE runs (turn int)")
        self.server.sql("GRANT ALL ON runs TO tiny")
        ports = {name: FIRST_PORT + number for number, name in enumerate(names)}
        self.pillar = apphost.told(ports, self.server.url)
        self.pillar["overrides"]["uwsgi"]["processes"] = 1
        # So many on so few cores take their time.
        self.pillar["sites"]["tiny"]["deploy"]["health_timeout"] = "300s"
        with output.step("setting up the host that all others are copies of"):
            self.image = minions.image(folder / "image", self.project, self.pillar)
        self.master = self.keep(minions.Master(folder / "master", self.pillar))

    def keep(self, started):
        self.ended.callback(started.close)
        return started

    def add(self, names):
        """Start the hosts that aren't up yet."""
        fresh = [name for name in names if name not in self.hosts]
        with output.step("starting minions", len(fresh)) as step:
            for name in fresh:
                told = [self.project, self.pillar, name, self.image, self.master]
                self.hosts[name] = self.keep(minions.Host(self.folder / name, *told))
                # Two at a time: all at once, they would wait for each other's start for long.
                wait_for(lambda: len(self.master.accepted()) >= len(self.hosts) - 1, 60, "a key")
                step.advance(name)
            self.master.wait_for_minions(len(self.hosts))
        with output.step("starting their app servers"):
            self.master.start_servers([self.hosts[name] for name in fresh])

    def ship(self):
        """One more release on all hosts: the seconds, and each phase's on each host."""
        before = f"{self.ships:04}_more" if self.ships else "0001_initial"
        self.ships += 1
        text = MIGRATION.format(before=before, turn=self.ships)
        files = {f"things/migrations/{self.ships:04}_more.py": text}
        commit = self.project.commit(f"release {self.ships}", files)
        began = time.monotonic()
        told = self.master.ask("deploy.ship", f"rev={commit}")
        seconds = time.monotonic() - began
        wrong = {h: told.get(h, "no answer") for h in self.hosts if not self.well(told.get(h))}
        if wrong:
            sys.exit(f"ship {self.ships} failed: {json.dumps(wrong, indent=1)}")
        runs = self.server.sql(f"SELECT count(*) FROM runs WHERE turn = {self.ships}")
        assert runs == "1", f"The migration of ship {self.ships} ran {runs} times."
        stale = [n for n, h in self.hosts.items() if h.get("/")[1] != told[n]["release"]]
        assert not stale, f"{', '.join(stale)} answer from another release."
        phases = [(e["phase"], e["seconds"]) for r in told.values() for e in r["phases"]]
        return seconds, phases

    @staticmethod
    def well(told):
        return isinstance(told, dict) and told.get("result") is True

    def measure(self, names):
        """Ship some times to so many hosts; what it took."""
        self.add(names)
        with watched_memory() as free:
            with output.step(f"{len(names)} hosts: a ship that isn't counted"):
                self.ship()
            turns = []
            for turn in range(1, self.turns + 1):
                with output.step(f"{len(names)} hosts: ship {turn} of {self.turns}") as step:
                    turns.append(self.ship())
                    step.advance()
                output.say(f"             {turns[-1][0]:.1f} s")
        phases = {}
        for _, timed in turns:
            for phase, seconds in timed:
                phases.setdefault(phase, []).append(seconds)
        return {
            "hosts": len(names),
            "seconds": [seconds for seconds, _ in turns],
            "phases": {name: statistics.median(each) for name, each in phases.items()},
            "memory": self.memory - min(free),
        }


def measure(bench, names, counts, rows):
    """Add a row for each number of hosts that fits into the RAM."""
    for count in counts:
        if rows:
            each = rows[-1]["memory"] / rows[-1]["hosts"]
            needed, free = each * (count - rows[-1]["hosts"]), free_memory() * SHARE
            if needed > free:
                output.say(f"{count} hosts don't fit: {each / 2**20:.0f} MiB each, "
                           f"{free / 2**30:.1f} GiB to give.")  # fmt: skip
                break
        rows.append(bench.measure(names[:count]))


def report(rows):
    first = rows[0]
    base = statistics.median(first["seconds"])
    names = ["hosts", "seconds", "fastest, slowest", "seconds a host", "times the hosts",
             "times the time", "slowest phase", "RAM"]  # fmt: skip
    print(f"\n| {' | '.join(names)} |\n{'|---' * len(names)}|")
    for row in rows:
        seconds, count = statistics.median(row["seconds"]), row["hosts"]
        slowest = max(row["phases"], key=row["phases"].get)
        cells = [
            str(count),
            f"{seconds:.1f}",
            f"{min(row['seconds']):.1f}, {max(row['seconds']):.1f}",
            f"{seconds / count:.2f}",
            f"{count / first['hosts']:.1f}",
            f"{seconds / base:.1f}",
            f"{slowest} {row['phases'][slowest]:.1f} s",
            f"{row['memory'] / 2**30:.1f} GiB",
        ]
        print(f"| {' | '.join(cells)} |")
    print("\nseconds of a phase on a host, median:")
    for row in rows:
        told = ", ".join(f"{name} {seconds:.2f}" for name, seconds in row["phases"].items())
        print(f"{row['hosts']:3} hosts: {told}")


def run(options):
    counts = sorted(set(options.hosts))
    names = [f"app{number}" for number in range(1, counts[-1] + 1)]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Ended by SIGTERM."))
    # A short path: those of unix sockets are limited. Open to the database's own user.
    with tempfile.TemporaryDirectory(prefix="ship-") as name, contextlib.ExitStack() as ended:
        folder = pathlib.Path(name)
        folder.chmod(0o755)
        rows = []
        try:
            measure(Bench(folder, names, options.turns, ended), names, counts, rows)
        finally:
            if rows:  # what was measured before it was ended, too
                report(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--hosts", type=int, nargs="+", default=[2, 20, 50])
    parser.add_argument("--turns", type=int, default=3)
    chosen = parser.parse_args()
    with_the_tests_python()
    run(chosen)
