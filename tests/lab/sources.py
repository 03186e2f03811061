"""Where the machine gets its software from, in the form in which its image gets it, too."""

import configparser
import os
import pathlib
import re

from tests.lab import machine
from tests.lab.commands import run

ETC = pathlib.Path("/etc")
CERTIFICATES = pathlib.Path("/usr/local/share/ca-certificates")
BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
# The machine's apt settings that decide whether its sources can be read at all.
APT_NETWORK_KEYS = re.compile(
    r"^Acquire::(Check-Valid-Until|Check-Date|Retries|ForceIPv[46]|https?::[\w.:-]+) ", re.I
)
PIP_SETTINGS = ("index-url", "extra-index-url", "trusted-host", "cert", "timeout", "proxy")


def certificates():
    """The certificates that the machine trusts besides its distribution's."""
    return sorted(CERTIFICATES.glob("**/*.crt"))


def apt_settings():
    """The machine's apt settings that say how to reach its sources, as lines of apt.conf."""
    lines = run("apt-config", "dump", "Acquire").stdout.splitlines()
    return "".join(f"{line}\n" for line in lines if APT_NETWORK_KEYS.match(line))


def apt_proxy():
    """The proxy that the machine's apt uses for http, or None."""
    said = run("apt-config", "shell", "proxy", "Acquire::http::Proxy").stdout
    match = re.match(r"proxy='(http://[^']+)'", said)
    return match[1] if match else None


def pip_settings(etc=ETC, home=None, environment=None):
    """The machine's pip configuration as a file, without what names folders of the machine."""
    home = home or pathlib.Path.home()
    environment = os.environ if environment is None else environment
    read = configparser.RawConfigParser()
    read.read(
        folder / "pip.conf"
        for folder in (etc, etc / "xdg/pip", home / ".pip", home / ".config/pip")
    )
    written = dict(read.items("global")) if read.has_section("global") else {}
    settings = {}
    for name in PIP_SETTINGS:
        value = environment.get("PIP_" + name.replace("-", "_").upper()) or written.get(name, "")
        words = [word for word in value.split() if not word.startswith(("file:", "/"))]
        if words:
            settings[name] = " ".join(words)
        elif value and name == "cert":
            settings[name] = BUNDLE
    return "[global]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items())


def uv_settings(etc=ETC):
    """The machine's uv configuration; without one, uv is told to trust what the system trusts."""
    own = etc / "uv/uv.toml"
    return own.read_text() if own.exists() else "native-tls = true\n"


def apt_sources(suite, etc=ETC):
    """
    The machine's own Debian sources, pointed at a suite. Third parties' are left out.

    suite
        The Debian release that is to be built, such as ``bookworm``.

    Returns a list of ``{"uri", "suite", "components"}``, the main archive first; empty where the
    machine isn't a Debian, whose own mirror debootstrap then chooses.
    """
    system = machine.os_release()
    if system.get("ID") != "debian":
        return []
    found = []
    for path in [etc / "apt/sources.list", *sorted((etc / "apt/sources.list.d").glob("*"))]:
        if path.suffix == ".sources":
            found += read_deb822(path.read_text())
        elif path.suffix == ".list" and path.exists():
            found += read_one_line(path.read_text())
    return debian_only(found, system.get("VERSION_CODENAME", suite), suite)


def debian_only(sources, codename, suite):
    """
    Keep Debian's own sources, and point them from one release at another.

    sources
        List of ``{"uri", "suite", "components"}``.
    codename
        The machine's release, which the suites start with.
    suite
        The release that is to be built.

    Returns the kept ones; the main archive first.
    """
    own = {codename, f"{codename}-updates", f"{codename}-security"}
    kept = [
        dict(source, suite=source["suite"].replace(codename, suite, 1))
        for source in sources
        if source["suite"] in own
        and "main" in source["components"]
        and source["uri"].startswith("http")
    ]
    return sorted(kept, key=lambda source: source["suite"] != suite)


def read_deb822(text):
    """The sources in a ``.sources`` file: a list of ``{"uri", "suite", "components"}``."""
    found = []
    for stanza in re.split(r"\n[ \t]*\n", text):
        lines = "\n".join(line for line in stanza.splitlines() if not line.startswith("#"))
        pairs = re.findall(r"^([\w-]+):[ \t]*(.*(?:\n[ \t]+.*)*)", lines, re.M)
        fields = {name.lower(): value.split() for name, value in pairs}
        if "deb" not in fields.get("types", []) or fields.get("enabled") == ["no"]:
            continue
        found += [
            {"uri": uri, "suite": suite, "components": fields.get("components", [])}
            for uri in fields.get("uris", [])
            for suite in fields.get("suites", [])
        ]
    return found


def read_one_line(text):
    """The sources in a ``.list`` file, as :func:`read_deb822` returns them."""
    found = []
    for line in text.splitlines():
        match = re.match(r"\s*deb\s+(?:\[[^]]*\]\s+)?(\S+)\s+(\S+)\s+([^#]+)", line)
        if match:
            uri, suite, components = match.groups()
            found.append({"uri": uri, "suite": suite, "components": components.split()})
    return found


def source_line(source):
    """A source as a line of a ``.list`` file."""
    return f"deb {source['uri']} {source['suite']} {' '.join(source['components'])}\n"
