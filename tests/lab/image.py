"""
The image that every host is an overlay on: a plain Debian server with Salt, built once.

Packages come from where the machine's own come from; nothing here names a mirror. An image's
folder is named by a digest of what determines it, this file included.
"""

import configparser
import contextlib
import fcntl
import hashlib
import os
import pathlib
import re
import shutil

from tests.lab import machine, network, output
from tests.lab.commands import LabError, run, stream

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
SALT_COMMANDS = ["salt", "salt-call", "salt-key", "salt-master", "salt-minion", "salt-run", "salt-ssh"]
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
APT = (
    'APT::Install-Recommends "false";\n'
    'Acquire::Languages "none";\n'
    'APT::Periodic::Enable "0";\n'
)
# The machine's apt settings that decide whether its sources can be read at all.
APT_NETWORK_KEYS = re.compile(
    r"^Acquire::(Check-Valid-Until|Check-Date|Retries|ForceIPv[46]|https?::[\w.:-]+) ", re.I
)


def key(checkout):
    """The digest of what determines an image."""
    parts = [
        pathlib.Path(__file__).read_text(),
        repr(_sources()),
        _apt_settings(),
        _pip_settings(),
        _constraints(checkout),
        *[path.read_text() for path in _certificates()],
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


def prune(images, used):
    """Remove images that no lab stands on, but for the latest few."""
    spare = [path for path in images.iterdir() if path.is_dir() and path.name not in used]
    spare.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for path in spare[SPARE_IMAGES:]:
        shutil.rmtree(path)


def _build(checkout, images, target, step):
    """Build in a folder of another name, and rename it when it is complete."""
    for rest in images.glob(".building-*"):
        shutil.rmtree(rest)
    root = images / f".building-{target.name}"
    sources = _sources()
    step.detail = "debootstrap"
    mirror = [sources[0]["uri"]] if sources else []
    keyring = "--keyring=/usr/share/keyrings/debian-archive-keyring.gpg"
    stream("debootstrap", "--variant=minbase", keyring, SUITE, root, *mirror)
    step.detail = "Debian packages"
    _configure_packaging(root, sources)
    _inside(root, "apt-get", "update")
    _inside(root, "apt-get", "dist-upgrade", "-y")
    _inside(root, "apt-get", "install", "-y", *PACKAGES)
    _trust(root)
    step.detail = "Salt"
    _install_salt(checkout, root)
    step.detail = "tidying"
    _finish(root)
    root.rename(target)


def _configure_packaging(root, sources):
    if sources:
        (root / "etc/apt/sources.list").write_text("".join(_source_line(s) for s in sources))
    (root / "etc/apt/apt.conf.d/80saltern-lab").write_text(APT + _apt_settings())
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
    for path in _certificates():
        shutil.copy(path, folder / path.name)
    _inside(root, "update-ca-certificates")
    (root / "etc/pip.conf").write_text(_pip_settings())
    (root / "etc/uv").mkdir(exist_ok=True)
    own = pathlib.Path("/etc/uv/uv.toml")
    text = own.read_text() if own.exists() else "native-tls = true\n"
    (root / "etc/uv/uv.toml").write_text(text)


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
    _inside(root, "systemctl", "disable", "apt-daily.timer", "apt-daily-upgrade.timer", "e2scrub_all.timer")
    for pattern in ("etc/ssh/ssh_host_*", "var/log/*.log", "var/log/apt/*", "tmp/*", "root/.cache"):
        for path in root.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (root / "usr/sbin/policy-rc.d").unlink()
    (root / "etc/machine-id").unlink(missing_ok=True)


def _inside(root, *command):
    """Run a command in the image, with the machine's network."""
    stream(
        "systemd-nspawn", "-q", "--register=no", "--keep-unit", "--resolv-conf=off",
        "--timezone=off", "--console=pipe", "--setenv=DEBIAN_FRONTEND=noninteractive", "--setenv=LC_ALL=C.UTF-8",
        "-D", root, *command,
    )  # fmt: skip


def _constraints(checkout):
    lock = checkout / "requirements.lock"
    return lock.read_text() if lock.exists() else "salt==3008.3\n"


def _certificates():
    return sorted(pathlib.Path("/usr/local/share/ca-certificates").glob("**/*.crt"))


def _apt_settings():
    lines = run("apt-config", "dump", "Acquire").stdout.splitlines()
    return "".join(f"{line}\n" for line in lines if APT_NETWORK_KEYS.match(line))


def _pip_settings():
    """The machine's pip configuration, without what names folders of this machine."""
    read = configparser.RawConfigParser()
    home = pathlib.Path.home()
    read.read(["/etc/pip.conf", "/etc/xdg/pip/pip.conf", home / ".pip/pip.conf", home / ".config/pip/pip.conf"])
    settings = dict(read.items("global")) if read.has_section("global") else {}
    for name in ("index-url", "extra-index-url", "trusted-host", "cert", "timeout"):
        value = os.environ.get("PIP_" + name.replace("-", "_").upper())
        if value:
            settings[name] = value
    settings.pop("find-links", None)
    for name in ("index-url", "extra-index-url"):
        urls = [url for url in settings.pop(name, "").split() if not url.startswith("file:")]
        if urls:
            settings[name] = " ".join(urls)
    if "cert" in settings:
        settings["cert"] = "/etc/ssl/certs/ca-certificates.crt"
    return "[global]\n" + "".join(f"{name} = {value}\n" for name, value in sorted(settings.items()))


def _sources():
    """The machine's own Debian sources, for the image's suite: a list of dicts. Third parties' are left out."""
    system = machine.os_release()
    if system.get("ID") != "debian":
        return []  # debootstrap's own default
    folder = pathlib.Path("/etc/apt")
    found = []
    for path in [folder / "sources.list", *sorted((folder / "sources.list.d").glob("*"))]:
        if path.suffix == ".sources":
            found += _read_deb822(path.read_text())
        elif path.suffix == ".list" and path.exists():
            found += _read_one_line(path.read_text())
    return debian_only(found, system.get("VERSION_CODENAME", SUITE))


def debian_only(sources, codename):
    """
    Keep Debian's own sources, and point them at the image's suite.

    sources
        List of ``{"uri", "suite", "components"}``.
    codename
        The machine's release, which the suites start with.

    Returns the kept ones; the main archive first.
    """
    own = {codename, f"{codename}-updates", f"{codename}-security"}
    kept = [
        dict(source, suite=source["suite"].replace(codename, SUITE, 1))
        for source in sources
        if source["suite"] in own and "main" in source["components"] and source["uri"].startswith("http")
    ]
    return sorted(kept, key=lambda source: source["suite"] != SUITE)


def _read_deb822(text):
    found = []
    for stanza in re.split(r"\n\s*\n", text):
        lines = "\n".join(line for line in stanza.splitlines() if not line.startswith("#"))
        fields = {name.lower(): value for name, value in re.findall(r"^([\w-]+):\s*((?:.|\n[ \t])*)", lines, re.M)}
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").strip() == "no":
            continue
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                found.append({"uri": uri, "suite": suite, "components": fields.get("components", "").split()})
    return found


def _read_one_line(text):
    found = []
    for line in text.splitlines():
        match = re.match(r"\s*deb\s+(?:\[[^]]*\]\s+)?(\S+)\s+(\S+)\s+([^#]+)", line)
        if match:
            uri, suite, components = match.groups()
            found.append({"uri": uri, "suite": suite, "components": components.split()})
    return found


def _source_line(source):
    return f"deb {source['uri']} {source['suite']} {' '.join(source['components'])}\n"


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
