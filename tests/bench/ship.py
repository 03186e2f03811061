#!/usr/bin/env python3
"""
Ship again and again under load, and say what the visitors noticed.

    sudo python3 tests/bench/ship.py --ships 20 --strategy slots

Works on a lab that is up (``--name`` as for ``./lab``) and ships its example site: each ship brings
another commit with a migration of its own, every second one other dependencies. Meanwhile an
open-loop client asks through the balancer, a mix of cached and uncached pages, forms, uploads and
requests of 5 s. Prints a table; the exit code is 1 if a request failed or an answer was wrong.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.farm import releases  # noqa: E402 - the checkout is on the path only now
from tests.lab import farm, network, salt  # noqa: E402 - the checkout is on the path only now

MIGRATION = """\
from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("articles", "{before}")]
    operations = [migrations.RunSQL("{sql}")]
"""


class Bench:
    """One run on a lab."""

    def __init__(self, options):
        self.options = options
        self.lab = farm.Lab(options.name, ROOT)
        self.master = self.lab.hosts["master"]
        self.ships = []
        # Of this run alone: its migrations were never applied before.
        self.mark = str(int(time.time()))
        self.requirements = releases.published(self.master, "requirements.txt")
        self.migration = releases.last_migration(self.master)

    def run(self):
        print(f"{self.options.ships} ships, strategy {self.options.strategy}, "
              f"{self.options.rate:g} requests/s", flush=True)  # fmt: skip
        with tempfile.NamedTemporaryFile("w+") as answers:
            client = self.client(answers)
            self.started = time.monotonic()
            time.sleep(5)
            try:
                for number in range(1, self.options.ships + 1):
                    self.ship(number)
                time.sleep(5)
            finally:
                client.terminate()
                client.wait()
                releases.forget(self.master)
            answers.seek(0)
            found = [json.loads(line) for line in answers if line.endswith("}\n")]
        return self.report(found)

    def client(self, answers):
        balancer = next(h for h in self.lab.hosts.values() if "loadbalancer" in h.roles)
        # Visitors have machines of their own: theirs doesn't wait for the farm's.
        command = ["chrt", "--rr", "1", sys.executable, "-u"]
        command += [str(ROOT / "tests/bench/open_loop.py")]
        command += ["--address", balancer.address, "--host", self.options.site]
        command += ["--rate", str(self.options.rate), "--seconds", "36000"]
        return subprocess.Popen(network.on_hub(self.lab.name, command), stdout=answers)

    def commit(self, number):
        """A commit with one more migration; every second one has a dependency more, too."""
        files, before = {}, self.migration
        for count in range(1, number + 1):
            name = f"bench_{self.mark}_{count:04d}"
            table = f"CREATE TABLE bench_{self.mark}_{count} (n int)"
            files[f"articles/migrations/{name}.py"] = MIGRATION.format(before=before, sql=table)
            before = name
        if number % 2:
            files["requirements.txt"] = self.requirements + "iniconfig==2.0.0\n"
        return releases.commit(self.master, f"bench-{number}", files)

    def ship(self, number):
        commit = self.commit(number)
        began = time.monotonic() - self.started
        # Who types it sits at another machine: here it goes after those that serve.
        told = salt.returned(self.master.run(
            "nice", "-n", "10", "salt", "--out=json", "--timeout=300", self.options.target,
            "deploy.ship", f"rev={commit}", f"strategy={self.options.strategy}", check=False,
        ).stdout)  # fmt: skip
        ended = time.monotonic() - self.started
        wrong = {h: r for h, r in told.items() if not isinstance(r, dict) or not r["result"]}
        if wrong or not told:
            said = json.dumps(wrong, indent=1) if wrong else "no host answered."
            sys.exit(f"ship {number} failed: {said}")
        release = {report["release"] for report in told.values()}.pop()
        phases = [(e["phase"], e["seconds"]) for r in told.values() for e in r["phases"]]
        self.ships.append({"began": began, "ended": ended, "release": release, "phases": phases})
        print(f"  {number:3} {release} {ended - began:6.1f} s", flush=True)
        time.sleep(self.options.pause)

    def report(self, found):
        failed = [f for f in found if "error" in f]
        stale = [f for ship, following in zip(self.ships, [*self.ships[1:], None], strict=True)
                 for f in found
                 if f["kind"] in ("uncached", "post") and "error" not in f
                 and f["due"] > ship["ended"] + 0.1
                 and (not following or f["due"] + f["seconds"] < following["began"])
                 and f.get("release") != ship["release"]]  # fmt: skip
        inside, outside = [], []
        for one in found:
            if one["kind"] != "slow":
                near = any(s["began"] <= one["due"] <= s["ended"] for s in self.ships)
                (inside if near else outside).append(one["seconds"])
        print(f"\n| | during ships | between them |\n|---|---|---|\n"
              f"| requests | {len(inside)} | {len(outside)} |\n"
              f"| median, ms | {ms(inside, 50)} | {ms(outside, 50)} |\n"
              f"| p99, ms | {ms(inside, 99)} | {ms(outside, 99)} |\n"
              f"| slowest, ms | {ms(inside, 100)} | {ms(outside, 100)} |\n"
              f"| over 250 ms | {over(inside, 0.25)} | {over(outside, 0.25)} |")  # fmt: skip
        print(f"\nrequests: {len(found)}, failed: {len(failed)}, "
              f"from an older release after a ship: {len(stale)}")  # fmt: skip
        for one in failed[:10] + stale[:10]:
            print("  ", json.dumps(one))
        seconds = [s["ended"] - s["began"] for s in self.ships]
        print(f"ship: median {statistics.median(seconds):.1f} s, slowest {max(seconds):.1f} s")
        names = dict.fromkeys(name for s in self.ships for name, _ in s["phases"])
        for name in names:
            each = [took for s in self.ships for phase, took in s["phases"] if phase == name]
            print(f"  {name:10} {statistics.median(each):6.2f} s")
        return 1 if failed or stale else 0


def ms(seconds, percent):
    if not seconds:
        return "-"
    ordered = sorted(seconds)
    return f"{1000 * ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]:.0f}"


def over(seconds, limit):
    return sum(one > limit for one in seconds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--name", default=farm.DEFAULT_NAME, help="which lab")
    parser.add_argument("--ships", type=int, default=20)
    parser.add_argument("--strategy", default="slots", choices=["slots", "touch"])
    parser.add_argument("--rate", type=float, default=200, help="requests a second")
    parser.add_argument("--pause", type=float, default=3, help="seconds between ships")
    parser.add_argument("--site", default="newsroom.lab", help="the site's name for visitors")
    parser.add_argument("--target", default="app*", help="the hosts that ship")
    sys.exit(Bench(parser.parse_args()).run())
