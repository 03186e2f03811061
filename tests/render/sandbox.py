"""
Runs daemons' own checks on a host's rendered files, at the places where they belong.

Started as a program of its own in fresh mount, network, process and IPC namespaces, with a plan as
JSON on standard input: `{"address", "users", "folders", "files", "prepare", "checks"}`. It lays the
files over the machine's own folders (an overlay in RAM, so nothing of the machine changes), and
prints a list of `[exit code, output, seconds]`, one for each check.
"""

import grp
import json
import os
import pathlib
import pwd
import shutil
import subprocess
import sys
import time

SCRATCH = pathlib.Path("/mnt")
# The machine's folders that rendered files and the checks may write to.
OVERLAID = ("etc", "run", "srv", "tmp", "usr/local", "var")
INTERFACE = "eth0"
LIMIT = 30  # seconds that a check may take


def run(plan):
    """Run the checks of a plan in a process in namespaces of its own; returns what main prints."""
    command = ["unshare", "--mount", "--net", "--pid", "--ipc", "--fork", "--mount-proc"]
    done = subprocess.run(
        [*command, sys.executable, __file__],
        input=json.dumps(plan),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"the sandbox for rendered files failed:\n{done.stdout}{done.stderr}")
    return json.loads(done.stdout)


def main():
    plan = json.load(sys.stdin)
    _overlay()
    _network(plan["address"])
    for user in plan["users"]:
        _user(user)
    for folder in plan["folders"]:
        pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    for file in plan["files"]:
        _write(**file)
    for command in plan["prepare"]:
        code, output, _ = _execute(command)
        if code:
            sys.exit(f"{command}: exit code {code}\n{output}")
    json.dump([_execute(command) for command in plan["checks"]], sys.stdout)


def _overlay():
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", SCRATCH], check=True)
    for folder in OVERLAID:
        upper, work = (SCRATCH / folder.replace("/", "-") / part for part in ("upper", "work"))
        upper.mkdir(parents=True)
        work.mkdir()
        shutil.copystat(f"/{folder}", upper)
        options = f"lowerdir=/{folder},upperdir={upper},workdir={work}"
        subprocess.run(
            ["mount", "-t", "overlay", "overlay", "-o", options, f"/{folder}"], check=True
        )
    # A lower layer doesn't show what is mounted on its own folders.
    pathlib.Path("/run/lock").mkdir(exist_ok=True)


def _network(address):
    """An interface with the host's address, so that daemons can bind to it. It leads nowhere."""
    for command in (
        "ip link set lo up",
        f"ip link add {INTERFACE} type veth peer name nowhere",
        f"ip address add {address}/24 dev {INTERFACE}",
        f"ip link set {INTERFACE} up",
        "ip link set nowhere up",
    ):
        subprocess.run(command.split(), check=True)


def _user(name):
    try:
        pwd.getpwnam(name)
    except KeyError:
        create = ["useradd", "--system", "--user-group", "--no-create-home", name]
        subprocess.run(create, check=True, capture_output=True)


def _write(path, text, mode, user, group):
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(int(mode, 8))
    os.chown(path, pwd.getpwnam(user).pw_uid, grp.getgrnam(group).gr_gid)


def _execute(command):
    started = time.monotonic()
    try:
        done = subprocess.run(
            command,
            shell=True,  # as Salt runs a check_cmd
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=LIMIT,
            env={"PATH": os.defpath + ":/usr/local/sbin:/usr/sbin:/sbin", "LC_ALL": "C.UTF-8"},
        )
        code, output = done.returncode, done.stdout.decode(errors="replace")
    except subprocess.TimeoutExpired:
        code, output = 124, f"not done after {LIMIT} s"
    return code, output, round(time.monotonic() - started, 3)


if __name__ == "__main__":
    main()
