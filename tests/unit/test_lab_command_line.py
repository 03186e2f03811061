"""The lab's command line: what it reads itself, what it passes on, how it refuses."""

import os
import subprocess
import sys

import pytest

from tests.lab import cli, farm, testing
from tests.lab.commands import UsageError

LAB = cli.CHECKOUT / "lab"


@pytest.mark.parametrize(
    ("words", "own", "passed"),
    [
        (["up", "app1", "--no-apply"], ["up", "app1", "--no-apply"], []),
        (["salt", "--version"], ["salt"], ["--version"]),
        (["salt", "*", "test.ping"], ["salt"], ["*", "test.ping"]),
        (["run", "app1", "ls", "-l", "--help"], ["run", "app1"], ["ls", "-l", "--help"]),
        (["curl", "-sI", "http://lb1/"], ["curl"], ["-sI", "http://lb1/"]),
        (["--name", "run", "status"], ["--name", "run", "status"], []),
        (["--name", "two", "run", "app1", "id"], ["--name", "two", "run", "app1"], ["id"]),
        (["run", "--help"], ["run", "--help"], []),
        (["run"], ["run"], []),
        (["test", "unit", "-k", "lab"], ["test"], ["unit", "-k", "lab"]),
        (["kill", "salt"], ["kill", "salt"], []),
    ],
)
def test_what_is_passed_on_is_untouched(words, own, passed):
    assert cli.split(words) == (own, passed)


@pytest.mark.parametrize(
    ("words", "kinds", "arguments"),
    [
        ([], ["unit", "render", "functional", "farm"], []),
        (["farm", "unit"], ["unit", "farm"], []),
        (["unit", "-k", "farm"], ["unit"], ["-k", "farm"]),
        (["-x"], ["unit", "render", "functional", "farm"], ["-x"]),
    ],
)
def test_kinds_of_tests_come_before_pytests_arguments(words, kinds, arguments):
    assert testing.split(words) == (kinds, arguments)


@pytest.mark.parametrize("name", ["", "two words", "a-b", "Upper", "x" * 21, "../etc"])
def test_a_name_that_cannot_name_a_lab_is_refused(name):
    with pytest.raises(UsageError, match="can't name a lab"):
        farm.Lab(name, cli.CHECKOUT)


@pytest.mark.parametrize(
    "command",
    sorted({*cli.PASSED_ON, "up", "down", "status", "shell", "kill", "start", "cut", "mend"}),
)
def test_each_command_has_help_without_root(command):
    done = ask(command, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: lab")


def test_an_unknown_command_is_refused():
    done = ask("upp")
    assert done.returncode == 2
    assert "invalid choice" in done.stderr


def test_without_root_there_is_one_sentence():
    """A copy in a folder that everybody can read: the checkout may lie in a private one."""
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[1]); from tests.lab import cli; "
        "os.geteuid() or os.setuid(65534); sys.exit(cli.main(['status']))"
    )
    command = [sys.executable, "-c", code, str(cli.CHECKOUT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "lab: The lab needs root: run it with sudo.\n"


def ask(*words):
    environment = dict(os.environ, COLUMNS="100")
    return subprocess.run(
        [sys.executable, LAB, *words], capture_output=True, text=True, check=False, env=environment
    )
