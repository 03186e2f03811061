#!/usr/bin/env python3
"""
How long settings take on a host: the first call of a run, later ones, a whole highstate rendered,
and the grain. Run it on a host, with Salt's own Python:

    ./lab run app1 /opt/saltstack/salt/bin/python - < tests/bench/settings.py
"""

import statistics
import time

import salt.config
import salt.loader
import salt.minion
import salt.state

REPEAT = 5


def timed(function, *arguments):
    """The milliseconds that a call takes."""
    start = time.perf_counter()
    function(*arguments)
    return (time.perf_counter() - start) * 1000


def main():
    """Measure and print."""
    options = salt.config.minion_config("/etc/salt/minion")
    options["grains"] = salt.loader.grains(options)
    minion = salt.minion.SMinion(options)
    service = minion.functions["inventory.services"]()[-1]
    rows = {"grain": [], "first call, alone": [], "later call": [], "first in a highstate": []}
    rows["whole highstate"] = []
    grain = salt.loader.grain_funcs(options)["hardware.hardware"]
    grain()
    for _ in range(REPEAT):
        rows["grain"].append(timed(grain))
        functions = salt.loader.minion_mods(minion.opts)
        functions["test.ping"]()
        rows["first call, alone"].append(timed(functions["settings.get"], service))
        rows["later call"].append(timed(functions["settings.get"], service))
        with salt.state.HighState(minion.opts) as high:
            get = high.state.functions["settings.get"]
            rows["first in a highstate"].append(timed(get, service))
        with salt.state.HighState(minion.opts) as high:
            rows["whole highstate"].append(timed(high.compile_low_chunks))
    print(f"{options['id']}, settings of {service}; milliseconds, median of {REPEAT} (slowest)")
    for name, taken in rows.items():
        print(f"{name:22} {statistics.median(taken):8.2f} ({max(taken):.2f})")


if __name__ == "__main__":
    main()
