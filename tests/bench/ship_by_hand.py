#!/usr/bin/env python3
"""
What `deploy.ship` costs beside the same commands typed by hand, and on more than one host.

    sudo python3 tests/bench/ship_by_hand.py [--name NAME] [--turns 5]

Works on a lab that is up. Each turn commits a change that leaves the dependencies alone, and takes
it live in turn: by hand on one host (fetch and check out, pip, check, migrate, collectstatic, gzip,
brotli, touch), by `salt` on that host, by `salt` on all app hosts. Prints the medians as a table.
"""

import argparse
import json
import pathlib
import statistics
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.farm import releases  # noqa: E402 - the checkout is on the path only now
from tests.lab import farm, salt  # noqa: E402 - the checkout is on the path only now

SITE, HOST = "newsroom", "app1"
# Where the same release goes by hand: beside the site, with its environment.
BEFOREHAND = f"""
set -e
mkdir -p /srv/byhand && cd /srv/byhand
[ -d repo.git ] || git clone --quiet --mirror {salt.SERVED_AS} repo.git
[ -d venv ] || python3 -m venv venv
git --git-dir=repo.git show main:requirements.txt > requirements.txt
venv/bin/pip install --quiet -r requirements.txt
"""
BY_HAND = """
set -e
cd /srv/byhand
while IFS= read -r line; do [ -z "$line" ] || export "$line"; done < /srv/sites/newsroom/shared/.env
now() { date +%s.%N; }
step() { local began=$(now); "$@" >/dev/null; echo "$step $began $(now)"; }
check_out() {
    git --git-dir=repo.git fetch --quiet --prune origin
    mkdir releases-$1 && git --git-dir=repo.git archive $1 | tar x -C releases-$1
}
step="fetch and check out"; step check_out $1
cd releases-$1; export STATIC_ROOT=$PWD/static RELEASE=$1 PIP_DISABLE_PIP_VERSION_CHECK=1
step="pip without change";  step ../venv/bin/pip install -q -r requirements.txt
step="check --deploy";      step ../venv/bin/python manage.py check --deploy
step="migrate";             step ../venv/bin/python manage.py migrate
step="collectstatic";       step ../venv/bin/python manage.py collectstatic --noinput
step="gzip";                step sh -c 'find static -type f | xargs gzip --keep --best'
step="brotli";              step sh -c 'find static -type f ! -name "*.gz" | xargs brotli --best'
step="touch";               step touch /srv/byhand/vassal.ini
cd ..; rm -r releases-$1
"""


class Bench:
    """The turns on a lab."""

    def __init__(self, name):
        lab = farm.Lab(name, ROOT)
        self.master, self.host = lab.hosts["master"], lab.hosts[HOST]
        self.apps = [h.name for h in lab.running() if "app" in h.roles]
        self.host.run("sh", "-s", stdin=BEFOREHAND)

    def commit(self, turn, way):
        css = releases.published(self.master, f"{SITE}/static/{SITE}.css")
        files = {f"{SITE}/static/{SITE}.css": f"{css}/* {turn} {way} */\n"}
        return releases.commit(self.master, f"byhand-{turn}-{len(way)}", files)

    def by_hand(self, sha):
        said = self.host.run("bash", "-s", sha, stdin=BY_HAND).stdout.splitlines()
        steps = [line.rsplit(" ", 2) for line in said]
        return {step: float(ended) - float(began) for step, began, ended in steps}

    def by_salt(self, sha, hosts):
        """The phases on the first host, and the seconds that the command took in all."""
        began = time.monotonic()
        told = salt.returned(self.master.run(
            "salt", "--out=json", "--timeout=60", "-L", ",".join(hosts),
            "deploy.ship", SITE, f"rev={sha}", check=False,
        ).stdout)  # fmt: skip
        took = time.monotonic() - began
        answers = {host: told.get(host) for host in hosts}
        failed = {h: a for h, a in answers.items() if not isinstance(a, dict) or not a["result"]}
        if failed:
            sys.exit(f"A ship failed: {json.dumps(failed, indent=1)}")
        phases = {entry["phase"]: entry["seconds"] for entry in told[hosts[0]]["phases"]}
        return phases | {"salt and the way there": took - total(phases)}

    def run(self, turns):
        ways = {
            "by hand, one host": self.by_hand,
            "deploy.ship, one host": lambda sha: self.by_salt(sha, [HOST]),
            f"deploy.ship, {len(self.apps)} hosts": lambda sha: self.by_salt(sha, self.apps),
        }
        found = {way: [] for way in ways}
        try:
            for turn in range(turns):
                for way, do in ways.items():
                    found[way].append(do(self.commit(turn, way)))
                    print(f"turn {turn + 1}: {way} {total(found[way][-1]):.2f} s", file=sys.stderr)
        finally:
            releases.forget(self.master)
        return found


def total(steps):
    return sum(steps.values())


def report(found):
    medians = {way: statistics.median(map(total, runs)) for way, runs in found.items()}
    by_hand = next(iter(found.values()))
    hand = statistics.median(map(total, by_hand))
    # A ship packs with brotli only what is new; who types may leave it out.
    less = statistics.median(total(run) - run["brotli"] for run in by_hand)
    print("| | seconds | of those by hand | without brotli by hand | each step |")
    print("|---|---|---|---|---|")
    for way, runs in found.items():
        each = {step: statistics.median(run[step] for run in runs) for step in runs[0]}
        steps = ", ".join(f"{step} {seconds:.2f}" for step, seconds in each.items())
        shares = f"{medians[way] / hand:.0%} | {medians[way] / less:.0%}"
        print(f"| {way} | {medians[way]:.2f} | {shares} | {steps} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--name", default=farm.DEFAULT_NAME, help="which lab")
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    report(Bench(options.name).run(options.turns))
