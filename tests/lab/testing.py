"""The tests: their virtualenv, and pytest run in it."""

import fcntl
import hashlib
import os
import subprocess
import sys

from tests.lab import farm, machine, output
from tests.lab.commands import LabError, UsageError, stream

# In the order in which they are run. The farm's come last: they take the longest.
KINDS = ["unit", "render", "functional", "farm"]


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
    quick = [kind for kind in kinds if kind != "farm"]
    code = _pytest(lab, python, quick, arguments) if quick else 0
    if "farm" not in kinds:
        return code
    if code:
        output.say(f"The farm's tests weren't run, because of what failed in {', '.join(quick)}.")
        return code
    lab.prepare()
    if not lab.converged():
        lab.up([])
    return _pytest(lab, python, ["farm"], arguments)


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
