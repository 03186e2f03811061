#!/usr/bin/env python3
"""
What the edge carries: one page from memory, packed as browsers ask for it, by each part of the
road, with wrk.

    sudo python3 tests/bench/edge.py [--name NAME] [--seconds 10]

Needs the lab up and `wrk` on the machine. Client, balancer and accelerators share the machine's
cores, so the figures are for comparing with each other, not with another machine's. Each line is
run three times in turn with the others, and the median is shown. Then each daemon is reloaded five
times while 500 requests a second are asked. Prints two tables; the exit code is 1 if a request
failed.
"""

import argparse
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.farm.visitors import visitors  # noqa: E402 - the checkout is on the path only now
from tests.lab import farm, salt  # noqa: E402 - the checkout is on the path only now

PAGE, HOST = "/", "newsroom.lab"
VARNISH, HAPROXY = "http://198.18.0.21:6081", "http://198.18.0.11:80"
ALONE, BOTH, HALF = "Varnish", "HAProxy, Varnish", "HAProxy, Varnish, at half of that"
ROADS = {
    ALONE: (VARNISH, 50),
    BOTH: (HAPROXY, 50),
    HALF: (HAPROXY, 400),
    "Varnish, 2,000 connections": (VARNISH, 2000),
    "HAProxy, Varnish, 2,000 connections": (HAPROXY, 2000),
}
# What is reloaded: the hosts, how, and what is asked for meanwhile.
RELOADS = {
    "HAProxy": ("lb*", ["service.reload", "haproxy"], HAPROXY + PAGE),
    "Varnish": ("cache*", ["varnish.reload"], HAPROXY + PAGE),
    "nginx": ("app*", ["service.reload", "nginx"], "http://198.18.0.31:8080/static/newsroom.css"),
}
UNITS = {"us": 0.001, "ms": 1, "s": 1000, "m": 60000}


def wrk(lab, base, connections, seconds, rate=None):
    """
    One run: requests a second, p99 in ms, failed requests.

    rate
        Requests a second that are asked for, by pauses between them; as many as can be if None.
    """
    # Accelerators let none but balancers in.
    place = f"saltern-{lab}-lb1" if base == VARNISH else f"saltern-{lab}"
    command = ["ip", "netns", "exec", place, "wrk", "-t2", f"-c{connections}",
               f"-d{seconds}s", "--latency", "--timeout", "10s", "-H", f"Host: {HOST}",
               "-H", "Accept-Encoding: gzip"]  # fmt: skip
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        if rate:
            longest = round(2000 * connections / rate)
            script.write(f"function delay() return math.random(0, {longest}) end\n")
            script.flush()
            command += ["-s", script.name]
        done = subprocess.run([*command, base + PAGE], capture_output=True, text=True, check=True)
    said = done.stdout
    number, unit = re.search(r"99%\s+([\d.]+)(us|ms|s|m)", said).groups()
    wrong = sum(int(n) for n in re.findall(r"(?:connect|read|write|timeout) (\d+)", said))
    wrong += sum(int(n) for n in re.findall(r"Non-2xx or 3xx responses: (\d+)", said))
    return (
        float(re.search(r"Requests/sec:\s+([\d.]+)", said)[1]),
        float(number) * UNITS[unit],
        wrong,
    )


def reloaded(lab, target, call, url):
    """What visitors met while a daemon was reloaded: the report of tests/bench/steady.py."""
    with visitors(lab, url, rate=500) as seen:
        for _ in range(5):
            salt.call(lab, target, *call, options=["-C"])
    return seen.report


def main():
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--name", default=farm.DEFAULT_NAME, help="which lab")
    parser.add_argument("--seconds", type=int, default=10)
    options = parser.parse_args()

    runs = {road: [] for road in ROADS}
    for turn in range(3):
        for road, (base, connections) in ROADS.items():
            rate = runs[BOTH][-1][0] / 2 if road == HALF else None
            runs[road].append(wrk(options.name, base, connections, options.seconds, rate))
            print(f"run {turn + 1} of 3: {road}: {runs[road][-1]}", file=sys.stderr)

    print("| a page from memory | requests/s | p99 | failed |")
    print("|---|---|---|---|")
    medians = {}
    for road, found in runs.items():
        rates, slow, wrong = zip(*found, strict=True)
        medians[road] = statistics.median(rates)
        print(
            f"| {road} | {medians[road]:,.0f} | {statistics.median(slow):.1f} ms | {sum(wrong)} |"
        )
    print(
        f"\nThrough HAProxy: {medians[BOTH] / medians[ALONE]:.0%} of what Varnish alone carries.\n"
    )

    print("| reloaded five times, 500 requests/s | requests | failed | p99 |")
    print("|---|---|---|---|")
    lab = farm.Lab(options.name, ROOT)
    lost = sum(sum(wrong for _, _, wrong in found) for found in runs.values())
    for daemon, how in RELOADS.items():
        report = reloaded(lab, *how)
        lost += report["failed"]
        print(f"| {daemon} | {report['sent']} | {report['failed']} | {report['p99_ms']} ms |")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
