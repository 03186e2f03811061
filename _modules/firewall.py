"""
The firewall: what may come in, found from what services declare, and put in force so that a mistake
doesn't lock anybody out.

Each service's ``firewall.yaml`` maps a name to ``<port> from <whom>``; the language is described
in ``docs/firewall.md``.
"""

import ipaddress
import pathlib
import re
import socket
import subprocess
import time

import yaml
from salt.exceptions import CommandExecutionError

# What stands in an opening: `udp 514 from app, 10.0.0.0/8 or everyone on log`.
_OPENING = re.compile(
    r"(?:(?P<protocol>tcp|udp)\s+)?(?P<port>[\w.]+)(?:-(?P<last>\d+))?"
    r"\s+from\s+(?P<whom>[^\n]+?)(?P<fallback>\s+or\s+everyone)?(?:\s+on\s+(?P<on>[\w, ]+))?"
)
_LANGUAGE = "`<port> from <whom>`, such as `9100 from app, 203.0.113.7`: see docs/firewall.md"
# Protocols that have no ports.
_PORTLESS = ("vrrp",)
_TABLE = ("inet", "saltern")
# What is loaded at boot, and what the kernel said of it when it was proven.
_LIVE = pathlib.Path("/etc/nftables.conf")
_LISTED = pathlib.Path("/var/lib/saltern/firewall")
_WAY_BACK = "saltern-firewall-way-back"


def openings():
    """
    What may come in to this host: the openings of its services and of ``firewall.open``.

    Returns a list of dictionaries: ``service`` and ``name`` of the opening, ``whom`` it is for as
    it was written, ``protocol``, ``port`` and, of several in a row, the ``last`` one, else the same
    (both ``None`` where the protocol has no ports), ``everyone`` or else the addresses and
    networks, ``ipv4`` and ``ipv6``. Raises ``CommandExecutionError`` if one can't be understood.

    CLI Example:

    .. code-block:: bash

        salt 'db1' firewall.openings
    """
    services = __salt__["inventory.services"]()
    cached = __salt__["cp.cache_files"]([f"salt://{name}/firewall.yaml" for name in services])
    found = []
    for service, path in zip(services, cached, strict=True):
        declared = yaml.safe_load(pathlib.Path(path).read_text(encoding="utf-8")) if path else None
        for name, text in (declared or {}).items():
            where = f"salt/{service}/firewall.yaml: {name}"
            found.append(_opening(service, name, text, where))
    for name, text in __salt__["settings.get"]("firewall")["open"].items():
        found.append(_opening("firewall", name, text, f"The setting firewall.open.{name}"))
    return [opening for opening in found if opening]


def _opening(service, name, text, where):
    """One opening, resolved; nothing if it isn't for this host, or for nobody."""
    parts = _OPENING.fullmatch(str(text).strip())
    if not parts:
        raise CommandExecutionError(f"{where} is {text!r}. It should be {_LANGUAGE}.")
    if parts["on"] and not set(_words(parts["on"])) & set(__salt__["inventory.roles"]()):
        return None
    settings = __salt__["settings.get"](service)
    portless = parts["port"] in _PORTLESS
    port, last = (None, None) if portless else _in_a_row(parts, settings, where)
    whom = _words(parts["whom"])
    everyone, networks = _sources(whom, settings, where)
    if parts["fallback"] and not networks:
        everyone = True
    if not everyone and not networks:
        return None
    return {
        "service": service,
        "name": name,
        "whom": "everyone" if everyone else ", ".join(whom),
        "protocol": parts["port"] if portless else parts["protocol"] or "tcp",
        "port": port,
        "last": last,
        "everyone": everyone,
        "ipv4": [] if everyone else _told(networks, 4),
        "ipv6": [] if everyone else _told(networks, 6),
    }


def _words(text):
    return [word.strip() for word in text.split(",") if word.strip()]


def _in_a_row(parts, settings, where):
    """The first and the last port of an opening, which are the same where it names one."""
    first = _port(parts["port"], settings, where)
    last = _port(parts["last"], settings, where) if parts["last"] else first
    if last < first:
        raise CommandExecutionError(f"{where} is for ports {first}-{last}: the last comes first.")
    return first, last


def _port(word, settings, where):
    """A port that is given as a number or as the name of a setting."""
    port = int(word) if word.isdecimal() else _setting(word, settings)
    if isinstance(port, int) and 0 < port < 65536:
        return port
    raise CommandExecutionError(
        f"{where} names the port {word!r}, which is neither a port nor a setting that holds one."
    )


def _sources(whom, settings, where):
    """Whether everyone is meant, and the networks of whoever else is."""
    networks = set()
    for word in whom:
        if word == "everyone":
            return True, set()
        networks |= set(map(_network, _addresses(word, settings, where)))
    return {n.version for n in networks if n.prefixlen == 0} == {4, 6}, networks


def _addresses(word, settings, where):
    """The addresses and networks that a word stands for."""
    if word == "farm":
        entries = (__pillar__.get("hosts") or {}).values()
        listed = [host["address"] for host in __salt__["inventory.all"]()]
        # A host that stands there as a pattern comes for the first time from somewhere in there.
        return listed + [entry["network"] for entry in entries if "network" in entry]
    if word in __salt__["inventory.all_roles"]():
        return [host["address"] for host in __salt__["inventory.peers"](word)]
    named = _setting(word, settings)
    if isinstance(named, list):
        return named
    try:
        return [str(_network(word))]
    except ValueError:
        raise CommandExecutionError(
            f"{where} is for {word!r}, which is neither `everyone`, nor `farm`, nor a role, nor a "
            "network, nor a setting that lists networks."
        ) from None


def _setting(name, settings):
    """A service's setting by its dotted name; ``None`` if there is none."""
    value = settings
    for word in name.split("."):
        value = value.get(word) if isinstance(value, dict) else None
    return value


def _network(text):
    return ipaddress.ip_network(text, strict=False)


def _told(networks, version):
    """Networks of one version of IP as nftables reads them, those inside of others left out."""
    mine = ipaddress.collapse_addresses(n for n in networks if n.version == version)
    return [str(n.network_address) if n.num_addresses == 1 else str(n) for n in mine]


def active(path):
    """
    Whether the rules in force are those of a file, nobody changed them by hand, and they are loaded
    at boot too.

    path
        The ruleset.

    Returns ``True`` or ``False``.

    CLI Example:

    .. code-block:: bash

        salt '*' firewall.active /etc/saltern/nftables.conf
    """
    rules = pathlib.Path(path)
    if not (rules.exists() and _LIVE.exists() and _LISTED.exists()):
        return False
    proven = rules.read_text() == _LIVE.read_text() and _listing() == _LISTED.read_text()
    return proven and __salt__["service.enabled"]("nftables")


def load(path, patience=20):
    """
    Put a ruleset in force, whole or not at all; put the old one back if the master can't be
    reached under it. A timer of systemd's puts the old one back even if this minion dies meanwhile.

    path
        The ruleset: what ``nft --file`` reads.
    patience
        Seconds that the master may take to be reached.

    Returns the lines of the rules that went and came: ``{"gone": [...], "new": [...]}``. Raises
    ``CommandExecutionError`` if the old rules stay in force, with the reason.

    CLI Example:

    .. code-block:: bash

        salt 'db1' firewall.load /etc/saltern/nftables.conf
    """
    text = pathlib.Path(path).read_text(encoding="utf-8")
    _nft("--check", "--file", path)
    _let_nobody_out(openings())
    before = _listing()
    way_back = ["--file", str(_LIVE)] if _is_ours(_LIVE) else ["delete", "table", *_TABLE]
    _arm(way_back, patience)
    try:
        _nft("--file", "-", stdin=text + _connected(text))
        unreached = _unreached(patience)
        if unreached:
            _nft(*way_back)
            raise CommandExecutionError(
                f"Under the rules of {path} this host doesn't reach its master any more "
                f"({unreached}). The rules before them are in force again."
            )
    finally:
        _disarm()
    _keep(text)
    now = _listing()
    return {"gone": _lacking(before, now), "new": _lacking(now, before)}


def _keep(text):
    """Have what was proven loaded at boot."""
    fresh = _LIVE.with_suffix(".new")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(_LIVE)
    _LISTED.parent.mkdir(parents=True, exist_ok=True)
    _LISTED.write_text(_listing())
    _run(["systemctl", "enable", "--quiet", "nftables"])


def _lacking(here, there):
    """The rules of one listing that another lacks."""
    others = set(there.splitlines())
    return [line.strip() for line in here.splitlines() if line not in others and line.strip()]


def _is_ours(path):
    return path.exists() and "Managed by Saltern" in path.read_text()[:200]


def _listing():
    """The rules in force, without what changes by itself; empty if there are none."""
    try:
        return _nft("--stateless", "--terse", "list", "table", *_TABLE)
    except CommandExecutionError:
        return ""


def _connected(text):
    """
    Commands that let connections go on that were opened before the kernel followed connections, for
    a ruleset that has the sets for that.

    Without them the first rules would keep what comes in on an idle connection away, such as the
    one on which the minion waits for its master, until this host says something on it.
    """
    found = {4: [], 6: []}
    shown = _run(["ss", "--no-header", "--numeric", "--tcp", "state", "established"]).stdout
    for line in shown.splitlines():
        (own, own_port), (other, other_port) = (_endpoint(text) for text in line.split()[2:4])
        if not own.is_loopback:
            found[own.version].append(f"{other} . {other_port} . {own} . {own_port}")
    sets = {"before": found[4], "before6": found[6]}
    return "".join(
        f"add element {' '.join(_TABLE)} {name} {{ {', '.join(elements)} }}\n"
        for name, elements in sets.items()
        if elements and f"set {name} " in text
    )


def _let_nobody_out(allowed):
    """Refuse openings that let none of those in again who are here by SSH, or as minions."""
    ports = {"4505", "4506"} if "master" in __salt__["inventory.roles"]() else set()
    here = {"SSH": set(), "Salt": set()}
    shown = _run(["ss", "--no-header", "--numeric", "--tcp", "--processes", "state", "established"])
    for line in shown.stdout.splitlines():
        (own, port), (guest, _) = (_endpoint(text) for text in line.split()[2:4])
        if guest != own and not guest.is_loopback:
            way = "SSH" if '"sshd"' in line else "Salt" if port in ports else None
            here.setdefault(way, set()).add((guest, int(port)))
    for way in ("SSH", "Salt"):
        if here[way] and not any(_lets_in(o, *guest) for o in allowed for guest in here[way]):
            guests = ", ".join(sorted({str(address) for address, _ in here[way]}))
            raise CommandExecutionError(
                f"Whoever is connected by {way} now, from {guests}, couldn't come again under the "
                "new rules. The old ones stay: give ssh.allow or firewall.open the right networks."
            )


def _lets_in(opening, address, port):
    """Whether an opening lets an address come to a port; to sshd's port, if it has moved."""
    moved = opening["service"] == "ssh" and __salt__["sshd.answers"](opening["port"], 0)
    if opening["protocol"] != "tcp" or not (opening["port"] <= port <= opening["last"] or moved):
        return False
    networks = map(_network, opening["ipv4"] + opening["ipv6"])
    return opening["everyone"] or any(address in network for network in networks)


def _endpoint(text):
    """Address and port of one end of a connection, as ss shows it."""
    address, _, port = text.rpartition(":")
    address = ipaddress.ip_address(address.strip("[]").partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address, port


def _unreached(patience):
    """Why the master can't be reached; empty if it can, or if this host has none."""
    if __opts__.get("file_client") == "local":
        return ""
    masters = __opts__["master"] if isinstance(__opts__["master"], list) else [__opts__["master"]]
    ports = [__opts__.get("publish_port", 4505), __opts__.get("master_port", 4506)]
    deadline = time.monotonic() + float(patience)
    while True:
        failed = [_refusal(masters[0], port) for port in ports]
        if not any(failed) or time.monotonic() > deadline:
            return "; ".join(filter(None, failed))
        masters.append(masters.pop(0))
        time.sleep(0.2)


def _refusal(host, port):
    """Why a port can't be connected to; empty if it can."""
    try:
        with socket.create_connection((host, int(port)), timeout=3):
            return ""
    except OSError as error:
        return f"{host}:{port}: {error}"


def _arm(way_back, patience):
    """Have systemd take the way back, unless it is told not to in time."""
    _disarm()
    command = ["systemd-run", "--quiet", "--collect", f"--unit={_WAY_BACK}"]
    command += [f"--on-active={int(patience) + 20}", "--timer-property=AccuracySec=1s"]
    _run([*command, "nft", *way_back])


def _disarm():
    _run(["systemctl", "stop", f"{_WAY_BACK}.timer"], check=False)


def _nft(*arguments, stdin=None):
    return _run(["nft", *arguments], stdin=stdin).stdout


def _run(command, stdin=None, check=True):
    """Run a program. Raises ``CommandExecutionError`` with what it said if it fails."""
    try:
        done = subprocess.run(
            command, input=stdin or "", capture_output=True, text=True, check=False, timeout=60
        )
    except OSError as error:
        raise CommandExecutionError(f"{command[0]} can't be run: {error}") from error
    if check and done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise CommandExecutionError(f"{' '.join(command[:4])} failed: {said}")
    return done
