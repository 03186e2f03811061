"""
The image that every host is an overlay on: a plain Debian server with Salt, built once.

Packages come from where the machine's own come from. An image's folder is named by a digest of
what determines it, the recipe in this file included.
"""

import ast
import contextlib
import fcntl
import hashlib
import os
import pathlib
import shutil

from tests.lab import network, output, sources
from tests.lab.commands import stream

SUITE = "bookworm"
PACKAGES = [
    "apt-utils",
    "ca-certificates",
    "cron",
    "curl",
    "dbus",
    "git",
    "gnupg",
    "iproute2",
    "iputils-ping",
    "kmod",
    "less",
    "libpam-systemd",
    "logrotate",
    "nano",
    "netbase",
    "openssh-server",
    "openssl",
    "procps",
    "python3",
    "python3-venv",
    "sudo",
    "systemd",
    "systemd-sysv",
]
# timelib, which Salt needs, has no wheel: compiled while building, then taken away.
COMPILER = ["gcc", "libc6-dev", "python3-dev"]
SALT = "/opt/saltstack/salt"
SALT_COMMANDS = ["salt"] + [
    f"salt-{name}" for name in ("call", "key", "master", "minion", "run", "ssh")
]
# Nothing may install, update or check a host behind the back of who looks at it.
TIMERS = ["apt-daily.timer", "apt-daily-upgrade.timer", "e2scrub_all.timer"]
# Images that no lab stands on: this many are kept, the rest go when a new one is built.
SPARE_IMAGES = 2

UNITS = {
    "salt-master.service": """\
[Unit]
Description=Salt master
After=network.target

[Service]
Type=notify
NotifyAccess=all
ExecStart=/usr/local/bin/salt-master
Restart=on-failure

[Install]
WantedBy=multi-user.target
""",
    "salt-minion.service": """\
[Unit]
Description=Salt minion
After=network.target salt-master.service

[Service]
Type=notify
NotifyAccess=all
# A state run goes on while the minion that began it is restarted.
KillMode=process
ExecStart=/usr/local/bin/salt-minion
Restart=on-failure

[Install]
WantedBy=multi-user.target
""",
}
# What is thrown away with its host needs no flushing to the disk of the machine.
DPKG = "force-unsafe-io\npath-exclude=/usr/share/doc/*\npath-exclude=/usr/share/man/*\n"
APT = 'APT::Install-Recommends "false";\nAcquire::Languages "none";\nAPT::Periodic::Enable "0";\n'


def key(checkout):
    """The digest of what determines an image."""
    recipe = ast.dump(ast.parse(pathlib.Path(__file__).read_text()))  # whatever its comments say
    parts = [
        recipe,
        repr(sources.apt_sources(SUITE)),
        sources.apt_settings(),
        sources.pip_settings(),
        sources.uv_settings(),
        _constraints(checkout),
        *[path.read_text() for path in sources.certificates()],
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def ensure(checkout, images):
    """
    Build the image of a checkout unless it is there.

    images
        The folder of the images.

    Returns the image's folder.
    """
    target = images / key(checkout)
    images.mkdir(parents=True, exist_ok=True)
    images.chmod(0o700)
    if not target.exists():
        with _lock(images / ".lock"):
            if not target.exists():
                with output.step(f"building the image of a host (Debian {SUITE}, Salt)") as step:
                    _build(checkout, images, target, step)
    os.utime(target)
    return target


def prune(images, used, spare=SPARE_IMAGES):
    """Remove images that no lab stands on, but for the latest ``spare`` ones."""
    if not images.exists():
        return
    unused = [p for p in images.iterdir() if p.name not in used and not p.name.startswith(".")]
    unused.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for path in unused[spare:]:
        shutil.rmtree(path)


def _build(checkout, images, target, step):
    """Build in a folder of another name, and rename it when it is complete."""
    for rest in images.glob(".building-*"):
        shutil.rmtree(rest)
    root = images / f".building-{target.name}"
    origins = sources.apt_sources(SUITE)
    step.detail = "debootstrap"
    mirror = [origins[0]["uri"]] if origins else []
    keyring = "--keyring=/usr/share/keyrings/debian-archive-keyring.gpg"
    stream("debootstrap", "--variant=minbase", keyring, SUITE, root, *mirror)
    step.detail = "Debian packages"
    _configure_packaging(root, origins)
    _inside(root, "apt-get", "update")
    _inside(root, "apt-get", "dist-upgrade", "-y")
    _inside(root, "apt-get", "install", "-y", *PACKAGES)
    _trust(root)
    step.detail = "Salt"
    _install_salt(checkout, root)
    step.detail = "tidying"
    _finish(root)
    root.rename(target)


def _configure_packaging(root, origins):
    if origins:
        lines = [sources.source_line(origin) for origin in origins]
        (root / "etc/apt/sources.list").write_text("".join(lines))
    (root / "etc/apt/apt.conf.d/80saltern-lab").write_text(APT + sources.apt_settings())
    (root / "etc/dpkg/dpkg.cfg.d/saltern-lab").write_text(DPKG)
    (root / "etc/resolv.conf").unlink(missing_ok=True)
    (root / "etc/resolv.conf").write_text(network.resolver())
    policy = root / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)


def _trust(root):
    """Give the image the certificates that the machine trusts."""
    folder = root / "usr/local/share/ca-certificates"
    folder.mkdir(parents=True, exist_ok=True)
    for path in sources.certificates():
        shutil.copy(path, folder / path.name)
    _inside(root, "update-ca-certificates")
    (root / "etc/pip.conf").write_text(sources.pip_settings())
    (root / "etc/uv").mkdir()
    (root / "etc/uv/uv.toml").write_text(sources.uv_settings())


def _install_salt(checkout, root):
    constraints = root / "opt/saltstack/constraints.txt"
    constraints.parent.mkdir(parents=True)
    constraints.write_text(_constraints(checkout))
    _inside(root, "apt-get", "install", "-y", *COMPILER)
    _inside(root, "python3", "-m", "venv", SALT)
    pip = [f"{SALT}/bin/pip", "install", "--no-cache-dir", "--disable-pip-version-check"]
    _inside(root, *pip, "wheel")
    _inside(root, *pip, "-c", "/opt/saltstack/constraints.txt", "salt")
    _inside(root, "apt-get", "purge", "-y", "--auto-remove", *COMPILER)
    commands = root / "usr/local/bin"
    for name in SALT_COMMANDS:
        (commands / name).symlink_to(f"{SALT}/bin/{name}")
    (commands / "salt-pip").symlink_to(f"{SALT}/bin/pip")
    for name, text in UNITS.items():
        (root / "etc/systemd/system" / name).write_text(text)
    (root / "etc/salt").mkdir(exist_ok=True)


def _finish(root):
    """Leave out what belongs to one host, or to no host at all."""
    _inside(root, "apt-get", "clean")
    _inside(root, "systemctl", "disable", *TIMERS)
    for pattern in ("etc/ssh/ssh_host_*", "var/log/*.log", "var/log/apt/*", "tmp/*", "root/.cache"):
        for path in root.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (root / "usr/sbin/policy-rc.d").unlink()
    (root / "etc/machine-id").unlink(missing_ok=True)


def _inside(root, *command):
    """Run a command in the image, with the machine's network."""
    stream(
        "systemd-nspawn", "-q", "--register=no", "--keep-unit", "--resolv-conf=off",
        "--timezone=off", "--console=pipe", "--setenv=LC_ALL=C.UTF-8",
        "--setenv=DEBIAN_FRONTEND=noninteractive", "-D", root, *command,
    )  # fmt: skip


def _constraints(checkout):
    lock = checkout / "requirements.lock"
    return lock.read_text() if lock.exists() else "salt==3008.3\n"


@contextlib.contextmanager
def _lock(path):
    """One builder at a time; the others wait for it."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with output.step("waiting for another lab that is building the image"):
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
