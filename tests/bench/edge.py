#!/usr/bin/env python3
"""
What the edge carries: one page from memory, packed as browsers ask for it and not, by each part of
the road, with wrk.

    sudo python3 tests/bench/edge.py [--name NAME] [--seconds 10]

Needs the lab up and `wrk` on the machine. Client, balancer and accelerators share the machine's
cores, so the figures are for comparing with each other, not with another machine's. What a few
lines typed by hand make of HAProxy is measured beside ours: on lb2, which stands aside meanwhile.
Each line is run three times in turn with the others, and the median is shown. Then each daemon is
reloaded five times while 500 requests a second are asked. Prints two tables; the exit code is 1 if
a request failed.
"""

import argparse
import contextlib
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
VARNISH, OURS, BY_HAND = "http://198.18.0.21:6081", "http://198.18.0.11:80", "http://198.18.0.12:80"
ALONE, OVER_OURS, OVER_BY_HAND = "Varnish", "HAProxy, Varnish", "HAProxy by hand, Varnish"
PACKED, PLAIN = {"Accept-Encoding": "gzip"}, {}
# What is asked: where, with which headers, over how many connections, at half of which road's rate.
ROADS = {
    ALONE: (VARNISH, PACKED, 50, None),
    OVER_OURS: (OURS, PACKED, 50, None),
    OVER_BY_HAND: (BY_HAND, PACKED, 50, None),
    f"{ALONE}, not packed": (VARNISH, PLAIN, 50, None),
    f"{OVER_OURS}, not packed": (OURS, PLAIN, 50, None),
    f"{OVER_BY_HAND}, not packed": (BY_HAND, PLAIN, 50, None),
    f"{OVER_OURS}, at half of that": (OURS, PACKED, 50, OVER_OURS),
    f"{OVER_BY_HAND}, at half of that": (BY_HAND, PACKED, 50, OVER_BY_HAND),
    f"{OVER_OURS}, 2,000 connections": (OURS, PACKED, 2000, None),
    f"{OVER_BY_HAND}, 2,000 connections": (BY_HAND, PACKED, 2000, None),
}
TYPED = """\
defaults
    mode http
    timeout connect 5s
    timeout client 50s
    timeout server 50s
frontend web
    bind :80
    default_backend varnish
backend varnish
    server cache1 198.18.0.21:6081 check
    server cache2 198.18.0.22:6081 check
"""
# What is reloaded: the hosts, how, and what is asked for meanwhile.
RELOADS = {
    "HAProxy": ("lb*", ["service.reload", "haproxy"], OURS + PAGE),
    "Varnish": ("cache*", ["varnish.reload"], OURS + PAGE),
    "nginx": ("app*", ["service.reload", "nginx"], "http://198.18.0.31:8080/static/newsroom.css"),
}
UNITS = {"us": 0.001, "ms": 1, "s": 1000, "m": 60000}


def wrk(lab, base, headers, connections, seconds, rate=None):
    """
    One run: requests a second, p99 in ms, failed requests.

    rate
        Requests a second that are asked for, by pauses between them; as many as can be if None.
    """
    # Accelerators let none but balancers in.
    place = f"saltern-{lab}-lb1" if base == VARNISH else f"saltern-{lab}"
    command = ["ip", "netns", "exec", place, "wrk", "-t2", f"-c{connections}",
               f"-d{seconds}s", "--latency", "--timeout", "10s"]  # fmt: skip
    for name, value in {"Host": HOST, **headers}.items():
        command += ["-H", f"{name}: {value}"]
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


@contextlib.contextmanager
def typed_by_hand(host):
    """A plain HAProxy takes the place of ours on a balancer while the block runs."""
    unit, place = "saltern-bench-haproxy", "/run/saltern-bench-haproxy.cfg"
    host.run("sh", "-c", f"cat >{place}", stdin=TYPED)
    host.run("systemctl", "stop", "keepalived", "haproxy")
    try:
        host.run("systemd-run", f"--unit={unit}", "haproxy", "-db", "-f", place)
        yield
    finally:
        host.run("systemctl", "stop", unit, check=False)
        host.run("systemctl", "start", "haproxy", "keepalived")
        host.run("rm", place)


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

    lab = farm.Lab(options.name, ROOT)
    runs = {road: [] for road in ROADS}
    with typed_by_hand(lab.hosts["lb2"]):
        for turn in range(3):
            for road, (*asked, half) in ROADS.items():
                rate = runs[half][-1][0] / 2 if half else None
                runs[road].append(wrk(options.name, *asked, options.seconds, rate))
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
    print()
    for kind in ("", ", not packed"):
        ours, by_hand = (
            medians[road + kind] / medians[ALONE + kind] for road in (OVER_OURS, OVER_BY_HAND)
        )
        print(
            f"Through HAProxy{kind}: {ours:.0%} of what Varnish alone carries; "
            f"through the one typed by hand: {by_hand:.0%}."
        )
    print()

    print("| reloaded five times, 500 requests/s | requests | failed | p99 |")
    print("|---|---|---|---|")
    lost = sum(sum(wrong for _, _, wrong in found) for found in runs.values())
    for daemon, how in RELOADS.items():
        report = reloaded(lab, *how)
        lost += report["failed"]
        print(f"| {daemon} | {report['sent']} | {report['failed']} | {report['p99_ms']} ms |")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
