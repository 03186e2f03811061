#!/usr/bin/env python3
"""
What the edge carries: one page from memory, by each part of the road, with wrk.

    sudo python3 tests/bench/edge.py [--lab NAME] [--seconds 10]

Needs the lab up and `wrk` on the machine. Client, balancer and accelerators share the machine's
cores, so the figures are for comparing with each other, not with another machine's. Each line is
run three times in turn with the others, and the median is shown. Prints a table.
"""

import argparse
import pathlib
import re
import statistics
import subprocess
import sys

PAGE, HOST = "/", "newsroom.lab"
VARNISH, HAPROXY = "http://198.18.0.21:6081", "http://198.18.0.11:80"
ROADS = {
    "Varnish": (VARNISH, 50),
    "HAProxy, Varnish": (HAPROXY, 50),
    "Varnish, 2,000 connections": (VARNISH, 2000),
    "HAProxy, Varnish, 2,000 connections": (HAPROXY, 2000),
}
UNITS = {"us": 0.001, "ms": 1, "s": 1000, "m": 60000}


def on_network(lab, command):
    """A command as a client on the lab's network runs it."""
    return ["ip", "netns", "exec", f"saltern-{lab}", *command]


def wrk(lab, base, connections, seconds):
    """One run: requests a second, p99 in ms, failed requests."""
    command = ["wrk", "-t2", f"-c{connections}", f"-d{seconds}s", "--latency", "--timeout", "10s",
               "-H", f"Host: {HOST}", base + PAGE]  # fmt: skip
    done = subprocess.run(on_network(lab, command), capture_output=True, text=True, check=True)
    said = done.stdout
    number, unit = re.search(r"99%\s+([\d.]+)(us|ms|s|m)", said).groups()
    wrong = sum(int(n) for n in re.findall(r"(?:connect|read|write|timeout) (\d+)", said))
    wrong += sum(int(n) for n in re.findall(r"Non-2xx or 3xx responses: (\d+)", said))
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", said)[1])
    return rate, float(number) * UNITS[unit], wrong


def steady(lab, rate, seconds):
    """p99 at a steady rate, by tests/bench/steady.py: wrk only knows full speed."""
    script = pathlib.Path(__file__).with_name("steady.py")
    command = [sys.executable, str(script), HAPROXY + PAGE, f"--host={HOST}", f"--rate={rate}",
               f"--seconds={seconds}"]  # fmt: skip
    return subprocess.run(
        on_network(lab, command), capture_output=True, text=True, check=True
    ).stdout.strip()


def main():
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--lab", default="farm")
    parser.add_argument("--seconds", type=int, default=10)
    options = parser.parse_args()

    runs = {name: [] for name in ROADS}
    for turn in range(3):
        for name, (base, connections) in ROADS.items():
            print(f"run {turn + 1} of 3: {name}", file=sys.stderr)
            runs[name].append(wrk(options.lab, base, connections, options.seconds))

    print("| a page from memory | requests/s | p99 | failed |")
    print("|---|---|---|---|")
    medians = {}
    for name, found in runs.items():
        rates, slow, wrong = zip(*found, strict=True)
        medians[name] = statistics.median(rates)
        print(
            f"| {name} | {medians[name]:,.0f} | {statistics.median(slow):.1f} ms | {sum(wrong)} |"
        )
    share = medians["HAProxy, Varnish"] / medians["Varnish"]
    print(f"\nThrough HAProxy: {share:.0%} of what Varnish alone carries.")
    print(f"At 500 requests/s: {steady(options.lab, 500, options.seconds)}")


if __name__ == "__main__":
    main()
