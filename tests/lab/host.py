"""One host of a lab: its disk (an overlay on the image), its life, the way into it."""

import contextlib
import os
import pathlib
import re
import shlex
import signal
import subprocess
import time
import uuid

from tests.lab import cgroups, network
from tests.lab.commands import LabError, UsageError, remove, run

CHECKOUT = "/srv/saltern"
# Runs its arguments again whenever they end because the host reboots: systemd-nspawn leaves that
# to whoever started it. The first argument is what puts it into the host's control groups.
POWERED = """
join=$1; shift
while sh -c "$join"'exec "$@"' sh "$@"; [ $? -eq 133 ]; do :; done
"""
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "USER": "root",
    "SHELL": "/bin/bash",
    "LANG": "C.UTF-8",
    "TERM": os.environ.get("TERM", "dumb"),
}
BOOT_TIMEOUT = 180


def memory_bytes(text):
    """The bytes in a size such as ``768M`` or ``2G``."""
    match = re.fullmatch(r"(\d+)([MG])", str(text))
    if not match:
        raise UsageError(f"{text!r} isn't a memory size: write it as 768M or 2G.")
    return int(match[1]) * {"M": 2**20, "G": 2**30}[match[2]]


def supervisors(beginning):
    """The process ids of the systemd-nspawn that were given an argument with this beginning."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            program, *words = (path / "cmdline").read_text().split("\0")
            if program.endswith("systemd-nspawn") and any(w.startswith(beginning) for w in words):
                found.append(int(path.name))
    return found


class Host:
    """A host by its name in a lab; ``facts`` is its entry in the inventory."""

    def __init__(self, lab, name, facts):
        self.lab = lab
        self.name = name
        self.address = facts["address"]
        self.roles = facts.get("roles") or []
        self.memory = memory_bytes((facts.get("lab") or {}).get("memory", "1G"))
        self.folder = lab.folder / "hosts" / name
        self.root = self.folder / "root"

    @property
    def machine(self):
        return network.namespace(self.lab.name, self.name)

    # Its disk

    def has_disk(self):
        """Whether there is a complete disk, made on the image that the lab uses now."""
        note = self.folder / "image"
        return note.exists() and note.read_text() == self.lab.image.name

    def insert_disk(self):
        """Mount the host's disk, a new one if it has none."""
        if os.path.ismount(self.root):
            return
        fresh = not self.has_disk()
        if fresh:
            self.remove_disk()
        for part in ("upper", "work", "root"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        layers = f"lowerdir={self.lab.image},upperdir={self.folder / 'upper'}"
        layers += f",workdir={self.folder / 'work'}"
        run("mount", "-t", "overlay", "overlay", "-o", layers, self.root)
        if fresh:
            self._set_up()
            (self.folder / "image").write_text(self.lab.image.name)

    def remove_disk(self):
        """Throw the disk away."""
        if os.path.ismount(self.root):
            run("umount", self.root)
        remove(self.folder)

    def write(self, path, text, mode=0o644):
        """Write a file of the host from outside."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        target.write_text(text)
        target.chmod(mode)

    def releases(self):
        """The live release of each site on the disk: a dict by site."""
        links = [site / "current" for site in self.root.glob("srv/sites/*")]
        # From outside, where they point to isn't there.
        return {link.parent.name: link.readlink().name for link in links if link.is_symlink()}

    def _set_up(self):
        """What tells this host from the others, before its first boot."""
        master = self.lab.hosts["master"]
        self.write("etc/hostname", f"{self.name}\n")
        self.write(
            "etc/hosts",
            f"127.0.0.1 localhost\n{self.address} {self.name}\n"
            + (f"{master.address} master\n" if self is not master else ""),
        )
        self.write("etc/default/locale", f"LANG={ENVIRONMENT['LANG']}\n")
        self.write("etc/machine-id", uuid.uuid4().hex + "\n")
        self.write("etc/resolv.conf", network.resolver())
        proxy = f'Acquire::http::Proxy "http://{network.HUB_ADDRESS}:{self.lab.CACHE_PORT}";\n'
        self.write("etc/apt/apt.conf.d/90saltern-lab", proxy)
        run("chroot", self.root, "ssh-keygen", "-A")
        self.lab.introduce(self)

    # Its life

    def supervisor(self):
        """The process id of the host's systemd-nspawn, or None."""
        found = supervisors(f"--machine={self.machine}")
        return found[0] if found else None

    def init(self):
        """The process id, on the machine, of the host's init; None if it isn't running."""
        supervisor = self.supervisor()
        if not supervisor:
            return None
        for task in pathlib.Path(f"/proc/{supervisor}/task").iterdir():
            for child in (task / "children").read_text().split():
                status = pathlib.Path(f"/proc/{child}/status").read_text()
                ids = re.search(r"^NSpid:\s+(.*)$", status, re.M)
                if ids and ids[1].split()[1:] == ["1"]:
                    return int(child)
        return None

    def running(self):
        """Whether the host is on."""
        return self.init() is not None

    def boot(self):
        """Turn the host on; returns before it is up."""
        network.join_host(self.lab.name, self.name, self.address)
        self.insert_disk()
        doors = cgroups.create(self.lab.name, self.name, self.memory)
        join = "".join(f"echo $$ > {shlex.quote(str(door))}; " for door in doors)
        binds = [f"--bind-ro={self.lab.checkout}:{CHECKOUT}"] if self.name == "master" else []
        command = [
            "systemd-nspawn",
            "-q",
            f"--directory={self.root}",
            "--boot",
            "--register=no",
            "--keep-unit",
            f"--machine={self.machine}",
            f"--hostname={self.name}",
            f"--network-namespace-path={network.NAMESPACES / self.machine}",
            "--resolv-conf=off",
            "--timezone=off",
            "--link-journal=no",
            "--capability=all",
            *binds,
        ]
        environment = dict(ENVIRONMENT, SYSTEMD_NSPAWN_API_VFS_WRITABLE="network")
        with (self.folder / "console.log").open("a") as console:
            subprocess.Popen(
                ["sh", "-c", POWERED, "sh", join, *command],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd="/",
                start_new_session=True,
            )

    def wait_until_up(self):
        """Wait for systemd to have started everything; raises if it couldn't."""
        deadline = time.monotonic() + BOOT_TIMEOUT
        state = "off"
        while time.monotonic() < deadline:
            if self.running():
                cgroups.repeat_limit(self.lab.name, self.name, self.memory)
                state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
                if state == "running":
                    return
                if state == "degraded":
                    break
            time.sleep(0.2)
        if state == "degraded":
            failed = self.run("systemctl", "--failed", "--plain", "--no-legend", check=False).stdout
            units = ", ".join(line.split()[0] for line in failed.splitlines() if line.split())
            raise LabError(f"{self.name} is up, but these units failed: {units}.")
        raise LabError(
            f"{self.name} wasn't up after {BOOT_TIMEOUT} s (systemd says {state or 'nothing'!r}). "
            f"Its console: {self.folder / 'console.log'}"
        )

    def kill(self):
        """Pull the plug: every process of the host ends at once. The disk stays."""
        for pid in (self.init(), self.supervisor()):
            if pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while self.supervisor():
            if time.monotonic() > deadline:
                raise LabError(f"{self.name} can't be ended: its systemd-nspawn is stuck.")
            time.sleep(0.02)
        cgroups.remove(self.lab.name, self.name)

    # The way into it

    def inside(self, command):
        """What runs a command in the host, as root in a clean environment: a list of words."""
        init = self.init()
        if not init:
            raise UsageError(f"{self.name} isn't running: ./lab start {self.name} turns it on.")
        variables = [f"{name}={value}" for name, value in ENVIRONMENT.items()]
        return [
            "nsenter", "-t", str(init), "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup",
            "--root", "--wd", "env", "-i", *variables, *command,
        ]  # fmt: skip

    def run(self, *command, check=True, stdin=None):
        """Run a command in the host. Returns a ``CompletedProcess`` with text output."""
        given = {"input": stdin} if stdin is not None else {"stdin": subprocess.DEVNULL}
        done = subprocess.run(
            self.inside([str(word) for word in command]),
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=lambda: cgroups.join(self.lab.name, self.name),
            **given,
        )
        if check and done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines()[-3:]
            raise LabError(
                f"{self.name}: {shlex.join(command)} ended with {done.returncode}: {' '.join(said)}"
            )
        return done

    def become(self, command):
        """Replace this process by a command in the host, with its input, output, exit status."""
        inside = self.inside(command)
        cgroups.join(self.lab.name, self.name)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, what follows shouldn't
        os.execvp(inside[0], inside)
