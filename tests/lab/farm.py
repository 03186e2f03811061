"""A lab: the hosts of the inventory on one machine, from ``up`` to ``down``."""

import concurrent.futures
import contextlib
import difflib
import fcntl
import functools
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import urllib.parse

from tests.lab import cgroups, image, machine, network, output, package_cache, salt, sources
from tests.lab.commands import LabError, UsageError, remove, run
from tests.lab.host import Host, supervisors

STATE = pathlib.Path("/var/lib/saltern-lab")
CACHE = pathlib.Path("/var/cache/saltern-lab")
INVENTORY = "pillar/environments/lab/hosts.yaml"
SITES = "pillar/environments/lab/sites.yaml"
LONGEST_LAB_NAME = 20
DEFAULT_NAME = "farm"


class Lab:
    """A lab by its name, seen from a checkout."""

    CACHE_PORT = 3142

    def __init__(self, name, checkout):
        # No hyphen: "saltern-dev" must not take what "saltern-dev-app1" belongs to.
        if not re.fullmatch(r"[a-z0-9]+", name) or len(name) > LONGEST_LAB_NAME:
            raise UsageError(
                f"{name!r} can't name a lab: use lower-case letters and digits, "
                f"{LONGEST_LAB_NAME} of them at most."
            )
        self.name = name
        self.checkout = checkout
        self.folder = STATE / name
        self.log = self.folder / "lab.log"

    # What it consists of

    @functools.cached_property
    def hosts(self):
        """The hosts of the inventory that have an address: a dict of :class:`Host` by name."""
        path = self.checkout / INVENTORY
        entries = (machine.read_yaml(path) or {}).get("hosts") or {}
        entries = {name: facts for name, facts in entries.items() if "address" in facts}
        if "master" not in entries:
            raise UsageError(f"{path} lists no host named master, where the Salt master runs.")
        return {name: Host(self, name, facts) for name, facts in entries.items()}

    @functools.cached_property
    def image(self):
        """The folder of the image that the lab's hosts stand on."""
        return CACHE / "images" / self.remembered()["image"]

    def host(self, name):
        """A host by its name; an unknown one is refused with the nearest."""
        if name in self.hosts:
            return self.hosts[name]
        near = difflib.get_close_matches(name, self.hosts, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(self.hosts)}."
        raise UsageError(f"{INVENTORY} lists no host {name!r}: {hint}")

    def remembered(self):
        """What an earlier ``up`` wrote down (checkout, image, converged hosts); else empty."""
        note = self.folder / "lab.json"
        return json.loads(note.read_text()) if note.exists() else {}

    def remember(self, **facts):
        """Write down what later commands ask :meth:`remembered` for."""
        note = self.folder / "lab.json"
        fresh = note.with_suffix(".new")
        fresh.write_text(json.dumps(self.remembered() | facts) + "\n")
        fresh.replace(note)

    def running(self):
        """The hosts that are on."""
        return [host for host in self.hosts.values() if host.running()]

    def asking(self, url, command):
        """
        A command that asks for a URL, as one who may: a client on the farm's network, but the
        balancer lb1 for what lies behind the balancers.
        """
        command = [str(word) for word in command]
        behind = {"accelerator", "app"}
        asked = urllib.parse.urlsplit(url).hostname
        if any(behind & set(h.roles) for h in self.hosts.values() if asked in (h.name, h.address)):
            return network.on_host(self.name, "lb1", command)
        return network.on_hub(self.name, command)

    def need_running(self):
        """Refuse to go on where there is no lab."""
        if not self.remembered() or not self.hosts["master"].running():
            raise UsageError(f"The lab {self.name!r} isn't up: ./lab up starts it.")

    @contextlib.contextmanager
    def alone(self):
        """Keep two commands from changing the same lab at once."""
        (STATE / ".locks").mkdir(parents=True, exist_ok=True)
        with (STATE / ".locks" / self.name).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(
                    f"Another ./lab is changing the lab {self.name!r}: wait for it to end."
                ) from None
            yield

    # Up

    def up(self, names, apply=True):
        """
        Bring hosts up, converge them, ship the sites.

        names
            The hosts to start, besides the master; all of them if empty.
        apply
            Whether to go on, once the hosts answer, with states and releases.
        """
        self.prepare()
        wanted = [self.host(name) for name in names] or list(self.hosts.values())
        if self.hosts["master"] not in wanted:
            wanted.insert(0, self.hosts["master"])
        with self.alone():
            self._use_image()
            self._clean_leftovers()
            machine.prepare_kernel(STATE)
            self._connect()
            self._boot([host for host in wanted if not host.running()])
            salt.wait_for_minions(self, self.running())
            if apply:
                salt.publish_example(self)
                salt.converge(self)
                salt.ship(self)
                self.remember(converged=[host.name for host in self.running()])

    def prepare(self):
        """Refuse what can't work before anything is begun; install what is missing."""
        machine.check(STATE)
        before = self.remembered().get("checkout")
        if before and before != str(self.checkout):
            raise UsageError(
                f"The lab {self.name!r} belongs to the checkout {before}: use it from there, take "
                f"it down with ./lab --name {self.name} down, or choose another --name."
            )
        output.open_log(self.log)
        machine.provide("lab")

    def converged(self):
        """Whether the whole farm is on and an ``up`` has brought it to its end."""
        done = self.remembered().get("converged", [])
        return all(host.running() and host.name in done for host in self.hosts.values())

    def _use_image(self):
        """Stand on the checkout's image; running hosts keep theirs, and so does their lab."""
        if self.running() and self.remembered():
            return
        chosen = image.ensure(self.checkout, CACHE / "images")
        self.remember(checkout=str(self.checkout), image=chosen.name, converged=[])
        self.__dict__.pop("image", None)
        image.prune(CACHE / "images", used_images())

    def _clean_leftovers(self):
        """Take away what a crash left: of a host that isn't running, all but its disk."""
        for host in self.hosts.values():
            if host.running():
                continue
            host.kill()
            network.leave_host(self.name, host.name)
            if os.path.ismount(host.root):
                run("umount", host.root)
        if not self.running() and network.namespaces(self.name):
            self._end_hub_processes()
            network.close(self.name)

    def _connect(self):
        names = {host.address: [host.name] for host in self.hosts.values()}
        balancers = [host for host in self.hosts.values() if "loadbalancer" in host.roles]
        if balancers:
            names[balancers[0].address] += self.domains()
        network.open_hub(self.name, names)
        if not network.processes(network.hub(self.name)):
            self._start_package_cache()
        self._check_way_out()

    def sites(self):
        """The sites of the lab, as they are declared."""
        return (machine.read_yaml(self.checkout / SITES) or {}).get("sites") or {}

    def domains(self):
        """The domains of the sites, but for those that are names of hosts."""
        found = [domain for site in self.sites().values() for domain in site.get("domains") or []]
        return [domain for domain in dict.fromkeys(found) if domain not in self.hosts]

    def _start_package_cache(self):
        command = [sys.executable, package_cache.__file__, str(network.HUB_ADDRESS)]
        command += [str(self.CACHE_PORT), str(CACHE / "packages")]
        command += [sources.apt_proxy()] if sources.apt_proxy() else []
        with (self.folder / "packages.log").open("a") as log:
            subprocess.Popen(
                network.on_hub(self.name, command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd="/",
                start_new_session=True,
            )

    def _check_way_out(self):
        """Say it early when hosts can't fetch packages; they may not need to."""
        mirror = (self.image / "etc/apt/sources.list").read_text().split()[1]
        command = ["curl", "-sSf", "--output", "/dev/null", "--max-time", "30", "--retry", "3"]
        command += ["--retry-connrefused", "--retry-delay", "1"]
        command += ["--proxy", f"http://{network.HUB_ADDRESS}:{self.CACHE_PORT}"]
        command += [f"{mirror}/dists/{image.SUITE}/InRelease"]
        done = run(*network.on_hub(self.name, command), check=False)
        if done.returncode:
            output.say(
                f"Hosts can't fetch packages from {mirror} ({done.stderr.strip()}): "
                f"does a firewall on this machine drop forwarded packets?"
            )

    def _boot(self, hosts):
        if not hosts:
            return
        with output.step(f"booting {', '.join(host.name for host in hosts)}", len(hosts)) as step:
            for host in hosts:
                host.boot()
            for host in hosts:
                host.wait_until_up()
                step.advance()

    # Keys: made here, so that nothing is ever accepted unseen

    def keys(self, name):
        """The key pair of a minion, or of the ``master`` process itself as ``salt-master``."""
        folder = self.folder / "keys"
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        private, public = folder / f"{name}.pem", folder / f"{name}.pub"
        if not public.exists():
            openssl = ["chroot", self.image, "openssl"]
            pem = run(*openssl, "genpkey", "-quiet", "-algorithm", "RSA", secret=True).stdout
            private.write_text(pem)
            public.write_text(run(*openssl, "pkey", "-pubout", stdin=pem).stdout)
        return private.read_text(), public.read_text()

    def introduce(self, host):
        """Make a host's fresh disk a minion that the master knows."""
        salt.set_up_minion(self, host)
        if host.name == "master":
            salt.set_up_master(self, host)

    # The life of single hosts

    def start(self, host, empty=False):
        """Turn a host on; ``empty``: with a fresh disk."""
        if not self.remembered():
            raise UsageError(f"The lab {self.name!r} isn't up: ./lab up starts it.")
        if host.running():
            raise UsageError(f"{host.name} is running already.")
        with self.alone():
            output.open_log(self.log)
            if empty:
                network.leave_host(self.name, host.name)
                host.remove_disk()
            self._boot([host])
            salt.wait_for_minions(self, [host])

    # Down

    def down(self):
        """Leave nothing of the lab on the machine but the caches."""
        with self.alone():
            if self.folder.exists():
                output.open_log(self.log)
            with output.step(f"taking the lab {self.name!r} down"):
                self._end_processes()
                self._remove_disks()
                network.close(self.name)
                cgroups.remove(self.name)
                self._forget_nspawn()
                remove(self.folder)
                if not others(self.name):
                    machine.restore_kernel(STATE)

    def _end_processes(self):
        """End what runs in the lab's namespaces, and the supervisors of its hosts."""
        deadline = time.monotonic() + 10
        while mine := self._processes():
            for pid in mine:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > deadline:
                raise LabError(f"Some processes of the lab can't be ended: {sorted(mine)}.")
            time.sleep(0.05)

    def _processes(self):
        """The ids of the lab's processes: in its namespaces, and the supervisors of its hosts."""
        within = {pid for n in network.namespaces(self.name) for pid in network.processes(n)}
        return within | set(supervisors(f"--directory={self.folder}/"))

    def _end_hub_processes(self):
        for pid in network.processes(network.hub(self.name)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _remove_disks(self):
        """Remove all disks at once: each waits for the machine's file system to be flushed."""
        with concurrent.futures.ThreadPoolExecutor() as pool:
            list(pool.map(lambda root: run("umount", root), self._mounts()))
            list(pool.map(remove, (self.folder / "hosts").glob("*")))

    def _mounts(self):
        """The disks that are mounted."""
        lines = pathlib.Path("/proc/self/mounts").read_text().splitlines()
        folders = [line.split()[1] for line in lines]
        return [folder for folder in folders if folder.startswith(f"{self.folder}/")]

    def _forget_nspawn(self):
        for kind in ("propagate", "unix-export"):
            folder = pathlib.Path("/run/systemd/nspawn") / kind
            for path in folder.glob(f"saltern-{self.name}-*") if folder.exists() else []:
                remove(path)


def others(name):
    """The names of the other labs on this machine that have a network."""
    folder = network.NAMESPACES
    hubs = [path.name for path in folder.iterdir()] if folder.exists() else []
    names = [path.parent.name for path in STATE.glob("*/lab.json")]
    return [other for other in names if other != name and network.hub(other) in hubs]


def used_images():
    """The names of the images that labs on this machine stand on."""
    return {json.loads(note.read_text())["image"] for note in STATE.glob("*/lab.json")}


def forget(kinds):
    """Remove caches by the names of their folders, but for images that labs stand on."""
    for kind in kinds:
        folder = CACHE / kind
        if kind == "images":
            image.prune(folder, used_images(), spare=0)
        else:
            remove(folder)
