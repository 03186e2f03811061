"""The tests: their virtualenv, and pytest run in it."""

import fcntl
import hashlib
import os
import subprocess
import sys

from tests.lab import farm, machine, output
from tests.lab.commands import LabError, UsageError, stream

# What is run in one go, and how; the farm's tests come last, as they take the longest. Files that
# share neither ports nor hosts are run side by side, by a process for each core.
GROUPS = [
    (["unit", "render"], ["--numprocesses", "logical", "--dist", "loadfile"]),
    (["functional"], []),
    (["farm"], []),
]
KINDS = [kind for group, _ in GROUPS for kind in group]
# pytest's exit code where its arguments fit no test.
NOTHING_CHOSEN = 5


def run_tests(lab, words):
    """
    Run tests with pytest.

    lab
        The lab that the farm's tests use; brought up for them if it isn't.
    words
        Kinds of tests (all if there is none), then arguments for pytest.

    Returns pytest's exit code.
    """
    kinds, arguments = split(words)
    machine.check(farm.STATE)
    output.open_log(farm.STATE / "test.log")
    machine.provide("virtualenv", *kinds)
    python = virtualenv(lab.checkout)
    codes = []
    for group, options in GROUPS:
        chosen = [kind for kind in group if kind in kinds]
        if not chosen:
            continue
        if "farm" in chosen:
            _bring_up(lab)
        code = _pytest(lab, python, chosen, options + arguments)
        if code not in (0, NOTHING_CHOSEN):
            output.say(f"Something failed in {', '.join(chosen)}; what comes after wasn't run.")
            return code
        codes.append(code)
    return min(codes)


def _bring_up(lab):
    lab.prepare()
    if not lab.converged():
        lab.up([])


def split(words):
    """Part the kinds from pytest's arguments. Returns both as lists."""
    count = 0
    while count < len(words) and words[count] in KINDS:
        count += 1
    kinds = words[:count] or KINDS
    return [kind for kind in KINDS if kind in kinds], words[count:]


def virtualenv(checkout):
    """The Python of the virtualenv that has what ``requirements.lock`` lists; made if need be."""
    lock = checkout / "requirements.lock"
    if not lock.exists():
        raise UsageError(f"{lock} is missing: it lists what the tests need.")
    version = machine.python_version()
    if version < (3, 10):
        raise UsageError("The tests need Python 3.10 or later as the system's python3.")
    digest = hashlib.sha256(lock.read_bytes() + repr(version).encode()).hexdigest()[:12]
    folder = farm.CACHE / "virtualenvs" / digest
    folder.mkdir(parents=True, exist_ok=True)
    python = folder / "bin/python"
    complete = folder / "complete"
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not complete.exists():
            with output.step("making the tests' virtualenv from requirements.lock"):
                stream(machine.PYTHON, "-m", "venv", folder)
                stream(python, "-m", "pip", "install", "--no-deps", "-r", lock)
                complete.touch()
    return python


def _pytest(lab, python, kinds, arguments):
    """Run pytest, with its output where this process's goes. Returns its exit code."""
    folders = [f"tests/{kind}" for kind in kinds if (lab.checkout / "tests" / kind).is_dir()]
    if len(folders) < len(kinds):
        raise LabError(f"There are no tests of all these kinds: {', '.join(kinds)}.")
    environment = dict(
        os.environ,
        PATH=f"{python.parent}:{os.environ.get('PATH', os.defpath)}",
        PYTHONDONTWRITEBYTECODE="1",
        SALTERN_LAB=lab.name,
    )
    command = [python, "-m", "pytest", *folders, *arguments]
    sys.stdout.flush()
    return subprocess.run(command, cwd=lab.checkout, env=environment, check=False).returncode
