"""The command line of ``./lab``."""

import argparse
import os
import pathlib
import signal
import sys

from tests.lab import cgroups, farm, machine, network, output, testing
from tests.lab.commands import LabError, UsageError

CHECKOUT = pathlib.Path(__file__).resolve().parents[2]
MIB = 2**20
# Commands that pass on what follows: the number of words after them that are the lab's own.
PASSED_ON = {"salt": 0, "curl": 0, "run": 1, "test": 0}


def main(words=None):
    """Run ``./lab`` with the words of its command line. Returns the exit code."""
    words, passed = split(sys.argv[1:] if words is None else words)
    options = parser().parse_args(words)
    options.words = passed
    try:
        machine.check_root()
        return options.act(farm.Lab(options.name, CHECKOUT), options) or 0
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        output.log(f"lab: {error}")
        return error.code
    except KeyboardInterrupt:
        print("lab: interrupted; ./lab up goes on, ./lab down takes all away", file=sys.stderr)
        return 130


def split(words):
    """
    Cut a command line in two: what the lab reads, and what it passes on untouched.

    Returns both as lists of words.
    """
    for position, word in enumerate(words):
        own = PASSED_ON.get(word)
        if own is None or (position and words[position - 1] == "--name"):
            continue
        cut = position + 1 + own
        if words[position + 1 : position + 2] in (["--help"], ["-h"]):
            cut = position + 2
        return words[:cut], words[cut:]
    return words, []


def parser():
    top = argparse.ArgumentParser(prog="lab", description="A farm of real hosts on this machine.")
    top.add_argument(
        "--name",
        default=os.environ.get("SALTERN_LAB", farm.DEFAULT_NAME),
        help="which lab, where there are several (default: %(default)s; also $SALTERN_LAB)",
    )
    commands = top.add_subparsers(metavar="COMMAND", required=True)

    def command(name, act, text, passes=None):
        usage = f"lab [--name NAME] {name} {passes}" if passes else None
        added = commands.add_parser(name, help=text, description=text, usage=usage)
        added.set_defaults(act=act)
        return added

    added = command("up", up, "Boot the farm, apply the states, ship the sites.")
    added.add_argument("hosts", nargs="*", metavar="HOST", help="only these, and the master")
    added.add_argument("--no-apply", action="store_true", help="stop when the minions answer")
    command("status", status, "What is up, and how much memory it uses.")
    command("salt", salt, "The real salt on the master: ./lab salt '*' test.ping", "ARGS…")
    text = "Run a command in a host; its exit status is this one's."
    added = command("run", run, text, "HOST COMMAND…")
    added.add_argument("host", metavar="HOST")
    added = command("shell", shell, "A login shell in a host.")
    added.add_argument("host", metavar="HOST")
    command("curl", curl, "curl from a client on the farm's network.", "ARGS…")
    added = command("kill", kill, "Pull a host's plug; its disk stays.")
    added.add_argument("host", metavar="HOST")
    added = command("start", start, "Turn a host on that was killed.")
    added.add_argument("--empty", action="store_true", help="with a fresh disk")
    added.add_argument("host", metavar="HOST")
    for name, text in (("cut", "Pull a host's network cable."), ("mend", "Plug it in again.")):
        added = command(name, cable, text)
        added.set_defaults(plugged=name == "mend")
        added.add_argument("host", metavar="HOST")
    command(
        "test",
        test,
        "Run the tests: all of them, or those of the kinds named.",
        f"[{'|'.join(testing.KINDS)} …] [PYTEST ARGUMENTS]",
    )
    added = command("down", down, "Leave nothing of the lab but its caches.")
    added.add_argument("--image", action="store_true", help="remove the images, too")
    added.add_argument("--cache", action="store_true", help="remove images, packages, virtualenvs")
    return top


def up(lab, options):
    lab.up(options.hosts, apply=not options.no_apply)
    status(lab, options)
    balancers = [host.name for host in lab.running() if "loadbalancer" in host.roles]
    if balancers and not options.no_apply:
        own = "./lab" if lab.name == farm.DEFAULT_NAME else f"./lab --name {lab.name}"
        for address in [*lab.domains(), balancers[0]]:
            output.say(f"{own} curl -sI http://{address}/")


def status(lab, options):
    known = lab.remembered()
    if not known:
        output.say(f"The lab {lab.name!r} isn't up.")
        return
    output.say(f"lab {lab.name} of {known['checkout']}, log {lab.log}")
    for host in lab.hosts.values():
        state = "off"
        memory = ""
        if host.running():
            state = "up" if network.connected(lab.name, host.name) else "cut off"
            used = cgroups.usage(lab.name, host.name)
            memory = f"{used[0] // MIB:5d} / {used[1] // MIB} MiB" if used else ""
        releases = "  ".join(f"{site} {release}" for site, release in host.releases().items())
        line = f"{host.name:10} {state:8} {host.address:14} {memory:18} "
        output.say(f"{line}{', '.join(host.roles):20} {releases}".rstrip())


def salt(lab, options):
    lab.need_running()
    lab.hosts["master"].become(["salt", *options.words])


def run(lab, options):
    host = lab.host(options.host)
    if not options.words:
        raise UsageError("Which command? ./lab run HOST COMMAND…")
    host.become(options.words)


def shell(lab, options):
    lab.host(options.host).become(["bash", "--login"])


def curl(lab, options):
    lab.need_running()
    command = network.on_hub(lab.name, ["curl", *options.words])
    direct = {n: value for n, value in os.environ.items() if not n.lower().endswith("_proxy")}
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.execvpe(command[0], command, direct)


def kill(lab, options):
    host = lab.host(options.host)
    if not host.running():
        raise UsageError(f"{host.name} isn't running.")
    host.kill()


def start(lab, options):
    lab.start(lab.host(options.host), options.empty)


def cable(lab, options):
    host = lab.host(options.host)
    if not host.running():
        raise UsageError(f"{host.name} isn't running.")
    network.connect(lab.name, host.name, options.plugged)


def test(lab, options):
    return testing.run_tests(lab, options.words)


def down(lab, options):
    lab.down()
    if options.image or options.cache:
        farm.forget(["images"] if not options.cache else ["images", "packages", "virtualenvs"])
