"""The farm's tests work on a lab that is up: ``./lab test farm`` sees to that."""

import dataclasses
import json
import os
import pathlib
import subprocess

import pytest

from tests.lab import farm, network
from tests.lab import salt as salt_cli

CHECKOUT = pathlib.Path(__file__).resolve().parents[2]


@dataclasses.dataclass
class Answer:
    """What came back over HTTP; header names are in lower case."""

    status: int
    headers: dict
    body: str
    seconds: float


class LabUnderTest:
    """The lab as the tests use it. Failures raise."""

    def __init__(self, lab):
        self.lab = lab
        self.hosts = lab.hosts

    def run(self, host, *command, check=True, stdin=None):
        """Run a command in a host. Returns a ``CompletedProcess`` with text output."""
        command = [str(word) for word in command]
        return self.lab.host(host).run(*command, check=check, stdin=stdin)

    def start_in(self, host, *command):
        """Start a command in a host and go on. Returns the ``Popen``."""
        inside = self.lab.host(host).inside([str(word) for word in command])
        return subprocess.Popen(inside, stdin=subprocess.DEVNULL)

    def salt(self, target, function, *arguments):
        """
        Call a function on the minions that a (compound) target matches. Returns a dict by id.

        The patience is a busy machine's: a minion that is off is waited for, too.
        """
        return salt_cli.call(self.lab, target, function, *arguments, options=["-C", "-t", "120"])

    def apply(self, host, states, pillar=None, fails=False):
        """Run some states on a host, which go well or are to fail; returns what Salt printed."""
        given = [f"pillar={json.dumps(pillar)}"] if pillar else []
        command = ["salt", host, "state.apply", states, *given, "-t", "120"]
        done = self.run("master", *command, check=False)
        assert bool(done.returncode) is fails, done.stdout
        return done.stdout

    def wait_for_minion(self, host):
        """Wait until a host's minion answers, for example after it was killed."""
        salt_cli.wait_for_minions(self.lab, [self.lab.host(host)])

    def on_hub(self, *command, **options):
        """Run a command on the machine as a client on the farm's network."""
        command = network.on_hub(self.lab.name, [str(word) for word in command])
        return subprocess.run(command, capture_output=True, check=False, **options)

    def get(self, url, headers=None, method="GET", data=None, timeout=30):
        """
        Ask for a URL as one who may (``Lab.asking``); redirections aren't followed.

        Returns an :class:`Answer`. Raises ``ConnectionError`` if there is none within ``timeout``
        seconds.
        """
        given = []
        for name, value in (headers or {}).items():
            given += ["-H", f"{name}: {value}"]
        given += ["--data", data] if data is not None else []
        given += ["--head"] if method == "HEAD" else ["-X", method]
        form = "\n%{http_code} %{time_total} %{size_header}"
        command = [
            "curl", "-sS", "--include", "--http1.1", "--noproxy", "*",
            "--max-time", timeout, "-w", form, *given, url,
        ]  # fmt: skip
        done = subprocess.run(self.lab.asking(url, command), capture_output=True, check=False)
        if done.returncode:
            raise ConnectionError(f"{url}: {done.stderr.decode().strip()}")
        said, _, facts = done.stdout.rpartition(b"\n")
        status, seconds, size = facts.split()
        head, body = said[: int(size)].decode("latin-1"), said[int(size) :]
        last = head.strip().split("\r\n\r\n")[-1].splitlines()[1:]
        pairs = [line.split(":", 1) for line in last]
        found = {name.strip().lower(): value.strip() for name, value in pairs}
        return Answer(int(status), found, body.decode(errors="replace"), float(seconds))

    def kill(self, host):
        """Pull a host's plug."""
        self.lab.host(host).kill()

    def start(self, host, empty=False):
        """Turn a host on and wait until its minion answers."""
        self.lab.start(self.lab.host(host), empty=empty)

    def cut(self, host):
        """Pull a host's network cable."""
        network.connect(self.lab.name, host, up=False)

    def mend(self, host):
        """Plug a host's network cable in again."""
        network.connect(self.lab.name, host, up=True)


@pytest.fixture(scope="session")
def lab():
    """The lab that ``./lab test farm`` brought up."""
    found = farm.Lab(os.environ.get("SALTERN_LAB", farm.DEFAULT_NAME), CHECKOUT)
    if not found.remembered() or not found.hosts["master"].running():
        pytest.exit(f"The lab {found.name!r} isn't up: run these with ./lab test farm.", 2)
    return LabUnderTest(found)


@pytest.fixture(autouse=True)
def everything_back(request):
    """After each test that uses the lab: what it cut or killed is back, whatever became of it."""
    if "lab" not in request.fixturenames:
        yield
        return
    lab = request.getfixturevalue("lab")
    before = lab.lab.running()
    yield
    for host in before:
        if not host.running():
            lab.start(host.name)
        elif not network.connected(lab.lab.name, host.name):
            lab.mend(host.name)
