"""The machine below the lab: what it must be, what must be installed on it."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import tempfile

from tests.lab import output
from tests.lab.commands import LabError, UsageError, run, stream

# Debian packages on the machine, by what needs them.
PACKAGES = {
    "lab": [
        "curl",
        "debian-archive-keyring",
        "debootstrap",
        "iproute2",
        "nftables",
        "procps",
        "python3-yaml",
        "systemd-container",
    ],
    # The tests' virtualenv; the compiler is for timelib, which has no wheel.
    "virtualenv": ["gcc", "libc6-dev", "python3-dev", "python3-venv"],
    # The example site meets real caches, secrets a real GPG, host keys a real ssh-keygen.
    "unit": ["git", "gnupg", "memcached", "openssh-client", "openssl", "redis-server"],
    # The daemons whose own check decides whether a rendered configuration is right.
    "render": [
        "gnupg",
        "haproxy",
        "keepalived",
        "libnginx-mod-http-brotli-static",
        "logrotate",
        "mariadb-server-core",
        "memcached",
        "nftables",
        "nginx-light",
        "nutcracker",
        "openssh-server",
        "openssl",
        "pgbackrest",
        "pgbouncer",
        "postgresql",
        "rclone",
        "redis-server",
        "restic",
        "rsyslog",
        "rsyslog-elasticsearch",
        "rsyslog-gnutls",
        "rsyslog-relp",
        "ssl-cert",
        "stunnel4",
        "sudo",
        "systemd",
        "uwsgi-core",
        "uwsgi-plugin-python3",
        "varnish",
    ],
    # Ships and the road of a request in a box with the machine's own programs; Pebble is an ACME
    # server that certificates are fetched from.
    "functional": [
        "acme-tiny",
        "brotli",
        "curl",
        "gcc",
        "git",
        "haproxy",
        "iproute2",
        "libnginx-mod-http-brotli-static",
        "libpq-dev",
        "mariadb-backup",
        "mariadb-client",
        "mariadb-server-core",
        "nginx-light",
        "openssh-server",
        "openssl",
        "pebble",
        "postgresql",
        "python3-dev",
        "python3-venv",
        "restic",
        "uwsgi-core",
        "uwsgi-plugin-python3",
        "varnish",
    ],
    # Certificates for the farm: by a Pebble on its network, and by an authority of the tests' own.
    # SSH as its clients see it.
    "farm": ["openssh-client", "openssl", "pebble"],
}
FREE_DISK_GIB = 6
# How long another apt on the machine is waited for. [s]
APT_PATIENCE = 300
PYTHON = "/usr/bin/python3"
# The policy-rc.d that is there while packages are installed; known again after a crash.
NOTHING_STARTS = "#!/bin/sh\n# While Saltern's lab installs packages, nothing starts.\nexit 101\n"

KERNEL = pathlib.Path("/proc/sys")
# What the machine's kernel must allow while there are labs: packets pass through to the hosts,
# and each systemd watches a few dozen things (the kernel counts them for all hosts together).
KERNEL_SETTINGS = {
    "net/ipv4/ip_forward": 1,
    "fs/inotify/max_user_instances": 4096,
    "fs/inotify/max_user_watches": 524288,
}
KERNEL_NOTE = "kernel-before.json"


def check(folder):
    """
    Refuse, before anything is begun, a machine on which the lab can't work.

    folder
        Where the lab keeps its hosts.
    """
    check_root()
    check_system(os_release())
    folder.mkdir(parents=True, exist_ok=True)
    check_disk(folder, FREE_DISK_GIB)
    _check_overlay(folder)


def check_root():
    """Refuse to go on without root."""
    if os.geteuid() != 0:
        raise UsageError("The lab needs root: run it with sudo.")


def check_system(system):
    """Refuse a distribution, given as its os-release, whose packages aren't Debian's."""
    if not {"debian", "ubuntu"} & {system.get("ID"), *system.get("ID_LIKE", "").split()}:
        raise UsageError(
            f"The lab runs on Debian and Ubuntu; this is {system.get('PRETTY_NAME', 'neither')}."
        )
    if not shutil.which("apt-get"):
        raise UsageError("The lab needs apt-get, which isn't on this machine.")


def check_disk(folder, needed):
    """Refuse a folder under which there are fewer GiB free than needed."""
    free = shutil.disk_usage(folder).free / 2**30
    if free < needed:
        raise UsageError(f"The lab needs {needed} GiB free under {folder}: there are {free:.1f}.")


def os_release(path="/etc/os-release"):
    """The machine's /etc/os-release as a dict."""
    text = pathlib.Path(path).read_text()
    return {key: value.strip("\"'") for key, value in re.findall(r"^(\w+)=(.*)$", text, re.M)}


def python_version():
    """The version of the system's Python, as (major, minor)."""
    code = "import sys; print(list(sys.version_info[:2]))"
    return tuple(json.loads(run(PYTHON, "-c", code).stdout))


def provide(*purposes):
    """Name and install the packages of these purposes that aren't on the machine yet."""
    wanted = dict.fromkeys(name for purpose in purposes for name in PACKAGES[purpose])
    lacking = missing(list(wanted))
    if lacking:
        with output.step(f"installing {', '.join(lacking)}"):
            _install(lacking)


def missing(packages):
    if not packages:
        return []
    form = "${Package} ${db:Status-Status}\n"
    shown = run("dpkg-query", "-W", "-f", form, *packages, check=False).stdout.splitlines()
    installed = {line.split()[0] for line in shown if line.endswith(" installed")}
    return [package for package in packages if package not in installed]


def _install(packages):
    """Install packages whose daemons start on this machine neither now nor at its next boot."""
    env = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    before = _enabled_units()
    with _no_daemon_starts():
        stream("apt-get", "update", env=env)
        stream(
            "apt-get", "install", "-y", "--no-install-recommends",
            "-o", f"DPkg::Lock::Timeout={APT_PATIENCE}", *packages, env=env,
        )  # fmt: skip
    brought = _enabled_units() - before
    if brought:
        run("systemctl", "--root=/", "disable", *sorted(brought))


def prepare_kernel(folder, kernel=KERNEL):
    """
    Raise the kernel's settings to what labs need, and note what they were.

    folder
        Where the note is kept until the last lab is gone.
    """
    note = folder / KERNEL_NOTE
    before = _kernel_note(note, kernel)
    for name, needed in KERNEL_SETTINGS.items():
        now = int((kernel / name).read_text())
        if now < needed:
            before["settings"].setdefault(name, now)
            note.write_text(json.dumps(before))
            (kernel / name).write_text(str(needed))


def restore_kernel(folder, kernel=KERNEL):
    """Give the kernel's settings their noted values back."""
    note = folder / KERNEL_NOTE
    for name, value in _kernel_note(note, kernel)["settings"].items():
        (kernel / name).write_text(str(value))
    note.unlink(missing_ok=True)


def _kernel_note(note, kernel):
    """What was noted since the machine was booted: a reboot has restored all by itself."""
    boot = (kernel / "kernel/random/boot_id").read_text()
    found = json.loads(note.read_text()) if note.exists() else {}
    return found if found.get("boot") == boot else {"boot": boot, "settings": {}}


def read_yaml(path):
    """A YAML file's content, read by the system's Python, which has a parser."""
    code = "import json, sys, yaml; json.dump(yaml.safe_load(sys.stdin), sys.stdout)"
    done = run(PYTHON, "-c", code, stdin=path.read_text(), check=False)
    if done.returncode:
        raise UsageError(f"{path} isn't valid YAML: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout)


@contextlib.contextmanager
def _no_daemon_starts():
    """Tell packages, while they are being installed, to start nothing."""
    policy = pathlib.Path("/usr/sbin/policy-rc.d")
    if policy.exists() and policy.read_text() != NOTHING_STARTS:
        yield  # the machine has its own policy
        return
    policy.write_text(NOTHING_STARTS)
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink()


def _enabled_units():
    """The units that start at boot."""
    if not shutil.which("systemctl"):
        return set()
    command = ["systemctl", "--root=/", "list-unit-files", "--state=enabled", "--no-legend"]
    return {line.split()[0] for line in run(*command, check=False).stdout.splitlines() if line}


def _check_overlay(folder):
    """Try for real what every host needs: an overlay mount."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".check-") as name:
        where = pathlib.Path(name)
        for part in ("lower", "upper", "work", "root"):
            (where / part).mkdir()
        options = f"lowerdir={where}/lower,upperdir={where}/upper,workdir={where}/work"
        try:
            run("mount", "-t", "overlay", "overlay", "-o", options, where / "root")
        except LabError as error:
            raise UsageError(f"No overlay can be mounted under {folder}: {error}") from error
        run("umount", where / "root")
