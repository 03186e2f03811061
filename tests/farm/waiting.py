"""Waiting for what a busy farm does in its own time."""

import time


def until(seconds, check, every=1.0):
    """What `check` returns as soon as it is true; fails after so many seconds."""
    deadline = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < deadline, f"not within {seconds} s; the last answer: {found!r}"
        time.sleep(every)
    return found
