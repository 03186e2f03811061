"""What the lab says: steps with elapsed time on the terminal, everything else in a log file."""

import contextlib
import shutil
import sys
import threading
import time

STARTED = time.monotonic()
# How often a long step repeats itself: in place on a terminal, as a line elsewhere. [s]
TERMINAL_PULSE, PLAIN_PULSE = 0.5, 30

_log = None


def open_log(path):
    """Append what is logged from now on to a file."""
    global _log
    path.parent.mkdir(parents=True, exist_ok=True)
    _log = path.open("a", buffering=1)
    log(time.strftime("\n==== %Y-%m-%d %H:%M:%S ") + " ".join(sys.argv[1:]))


def log(text):
    """Write a text to the log file, if there is one."""
    if _log and text:
        _log.write(text.rstrip("\n") + "\n")


def log_file():
    """The open log file, to hand to a subprocess; None if there is none."""
    return _log


def log_name():
    """Where errors point the reader to."""
    return _log.name if _log else "the terminal"


def say(text=""):
    """Print a line, and log it."""
    print(text, flush=True)
    log(text)


class Step:
    """A step under way: ``advance`` counts, ``detail`` says what it is at."""

    def __init__(self, text, total=None):
        self.text, self.total, self.done, self.detail = text, total, 0, ""

    def advance(self, detail=""):
        self.done += 1
        self.detail = detail

    def line(self):
        count = f" … {self.done}/{self.total}" if self.total else " …"
        detail = f" {self.detail}" if self.detail else ""
        return f"[{time.monotonic() - STARTED:6.1f} s] {self.text}{count}{detail}"


@contextlib.contextmanager
def step(text, total=None):
    """Show a step from its beginning to its end, with elapsed time. Yields the :class:`Step`."""
    current, began, over = Step(text, total), time.monotonic(), threading.Event()
    terminal = sys.stdout.isatty()

    def show(line, end):
        if terminal:
            line = line[: shutil.get_terminal_size().columns - 1]
        print(("\r\033[K" if terminal else "") + line, end=end, flush=True)

    def pulse():
        while not over.wait(TERMINAL_PULSE if terminal else PLAIN_PULSE):
            show(current.line(), "" if terminal else "\n")

    show(current.line(), "" if terminal else "\n")
    log(current.line())
    beat = threading.Thread(target=pulse, daemon=True)
    beat.start()
    outcome = "failed"
    try:
        yield current
        outcome = "done"
    except KeyboardInterrupt:
        outcome = "interrupted"
        raise
    finally:
        over.set()
        beat.join()
        current.detail = f"{outcome}, {time.monotonic() - began:.1f} s"
        if terminal or outcome != "done" or time.monotonic() - began >= 1:
            show(current.line(), "\n")
        log(current.line())
