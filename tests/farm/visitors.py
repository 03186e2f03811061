"""Visitors who ask at a steady rate while a test does something to the farm."""

import contextlib
import json
import pathlib
import subprocess
import sys
import time

STEADY = pathlib.Path(__file__).parents[1] / "bench" / "steady.py"


class Visitors:
    """What they met: ``report`` is that of tests/bench/steady.py, once they have gone."""

    report = None


@contextlib.contextmanager
def visitors(lab, url, before=1.5, after=1.5, **options):
    """
    Have a URL of the example site asked for while the block runs.

    lab
        A :class:`tests.lab.farm.Lab`.
    url
        ``{n}`` in it becomes another number for each request.
    before, after
        Seconds for which they also ask before the block and after it.
    options
        As for tests/bench/steady.py: ``rate``, ``timeout``, ``method``, …

    Gives :class:`Visitors`.
    """
    given = [f"--{key}={value}" for key, value in options.items()]
    command = [sys.executable, str(STEADY), url, "--host=newsroom.lab", "--seconds=3600", *given]
    client = subprocess.Popen(lab.asking(url, command), stdout=subprocess.PIPE, text=True)
    found = Visitors()
    try:
        time.sleep(before)
        yield found
        time.sleep(after)
    finally:
        client.terminate()
        found.report = json.loads(client.communicate()[0])
        print(found.report, file=sys.stderr)
