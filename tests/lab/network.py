"""
The lab's network: a hub with a bridge, a namespace for each host, a way out.

The farm's addresses exist only inside the lab's own namespaces, so two labs can have the same.
The hub hides them behind its end of a /30 link to the machine, and the machine hides that link.
Everything is named ``saltern-…``, so that what is left over can be recognised.
"""

import ipaddress
import json
import pathlib
import subprocess

from tests.lab.commands import LabError, UsageError, run

FARM = ipaddress.ip_network("198.18.0.0/24")
HUB_ADDRESS = next(FARM.hosts())
WAYS_OUT = ipaddress.ip_network("198.18.255.0/24")
NAMESPACES = pathlib.Path("/var/run/netns")
NETNS_CONFIG = pathlib.Path("/etc/netns")
# An interface name has 15 characters at most; "v-" is taken.
LONGEST_HOST_NAME = 13

HUB_RULES = """
table ip saltern-lab {
  chain postrouting {
    type nat hook postrouting priority srcnat;
    oifname "outside" masquerade
  }
}
"""
MACHINE_RULES = """
table ip saltern-lab-%(lab)s {
  chain forward {
    type filter hook forward priority mangle;
    iifname "%(link)s" tcp flags syn tcp option maxseg size set rt mtu
    oifname "%(link)s" tcp flags syn tcp option maxseg size set rt mtu
  }
  chain postrouting {
    type nat hook postrouting priority srcnat;
    ip saddr %(link_network)s oifname != "%(link)s" masquerade
  }
}
"""


def hub(lab):
    """The name of a lab's hub namespace."""
    return f"saltern-{lab}"


def namespace(lab, host):
    """The name of a host's namespace."""
    return f"saltern-{lab}-{host}"


def namespaces(lab):
    """The names of a lab's namespaces that exist: hosts first, the hub last."""
    names = [path.name for path in NAMESPACES.iterdir()] if NAMESPACES.exists() else []
    hosts = [name for name in names if name.startswith(f"saltern-{lab}-")]
    return hosts + [name for name in names if name == hub(lab)]


def open_hub(lab, names):
    """
    Make a lab's hub and its way out, if they aren't there.

    names
        Mapping of address to the host names that clients on the hub know it by.
    """
    _write_names(lab, names)
    if hub(lab) in namespaces(lab):
        return
    run("ip", "netns", "add", hub(lab))
    _ip(hub(lab), "link", "set", "lo", "up")
    _ip(hub(lab), "link", "add", "farm", "type", "bridge", "stp_state", "0", "forward_delay", "0")
    _ip(hub(lab), "addr", "add", f"{HUB_ADDRESS}/{FARM.prefixlen}", "dev", "farm")
    _ip(hub(lab), "link", "set", "farm", "up")
    _let_frames_pass(lab)
    _open_way_out(lab)


def close(lab):
    """Remove a lab's namespaces, links and rules."""
    for name in namespaces(lab):
        run("ip", "netns", "delete", name)
    folder = NETNS_CONFIG / hub(lab)
    if folder.exists():
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    run("nft", "delete", "table", "ip", f"saltern-lab-{lab}", check=False)


def join_host(lab, host, address):
    """Make a host's namespace, with a link into the hub's bridge."""
    name, port = namespace(lab, host), port_of(host)
    if name in namespaces(lab):
        return
    run("ip", "netns", "add", name)
    _ip(hub(lab), "link", "add", port, "type", "veth", "peer", "name", "host0", "netns", name)
    _ip(hub(lab), "link", "set", port, "master", "farm", "up")
    _ip(name, "link", "set", "lo", "up")
    _ip(name, "addr", "add", f"{address}/{FARM.prefixlen}", "dev", "host0")
    _ip(name, "link", "set", "host0", "up")
    _ip(name, "route", "add", "default", "via", str(HUB_ADDRESS))


def leave_host(lab, host):
    """Remove a host's namespace and its link, which the kernel would let stand for a moment yet."""
    if namespace(lab, host) in namespaces(lab):
        _ip(hub(lab), "link", "delete", port_of(host), check=False)
        run("ip", "netns", "delete", namespace(lab, host))


def connect(lab, host, up):
    """Plug a host's cable in (``up``) or out."""
    _ip(hub(lab), "link", "set", port_of(host), "up" if up else "down")


def connected(lab, host):
    """Whether a host's cable is plugged in."""
    shown = _ip(hub(lab), "-json", "link", "show", port_of(host), check=False)
    return shown.returncode == 0 and "UP" in json.loads(shown.stdout)[0]["flags"]


def processes(name):
    """The ids of the processes in a namespace."""
    return [int(pid) for pid in run("ip", "netns", "pids", name, check=False).stdout.split()]


def on_hub(lab, command):
    """A command as it runs on the hub: as a client on the farm's network."""
    return ["ip", "netns", "exec", hub(lab), *command]


def on_host(lab, host, command):
    """A command of the machine as it runs on a host's place in the network."""
    return ["ip", "netns", "exec", namespace(lab, host), *command]


def port_of(host):
    """The hub's end of a host's cable."""
    if len(host) > LONGEST_HOST_NAME:
        raise UsageError(
            f"The lab can't name a cable for {host!r}: "
            f"a host name has {LONGEST_HOST_NAME} characters at most."
        )
    return f"v-{host}"


def resolver():
    """The machine's resolv.conf in a form that works in other namespaces."""
    text = pathlib.Path("/etc/resolv.conf").read_text()
    behind = pathlib.Path("/run/systemd/resolve/resolv.conf")
    if "nameserver 127." in text and behind.exists():
        return behind.read_text()
    return text


def _write_names(lab, names):
    folder = NETNS_CONFIG / hub(lab)
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["127.0.0.1 localhost"]
    lines += [f"{address} {' '.join(known)}" for address, known in names.items()]
    (folder / "hosts").write_text("\n".join(lines) + "\n")
    (folder / "resolv.conf").write_text(resolver())


def _let_frames_pass(lab):
    """Between hosts the hub is a switch: it doesn't show what passes to its own firewall."""
    if pathlib.Path("/proc/sys/net/bridge").exists():
        for family in ("ip", "ip6", "arp"):
            setting = f"net.bridge.bridge-nf-call-{family}tables=0"
            run(*on_hub(lab, ["sysctl", "-qw", setting]))


def _open_way_out(lab):
    number, link = _free_link()
    network = list(WAYS_OUT.subnets(new_prefix=30))[number]
    outer, inner = network.hosts()
    run("ip", "link", "add", link, "type", "veth", "peer", "name", "outside", "netns", hub(lab))
    run("ip", "addr", "add", f"{outer}/30", "dev", link)
    run("ip", "link", "set", link, "up", "alias", f"saltern-lab-{lab}")
    _ip(hub(lab), "addr", "add", f"{inner}/30", "dev", "outside")
    _ip(hub(lab), "link", "set", "outside", "up")
    _ip(hub(lab), "route", "add", "default", "via", str(outer))
    run(*on_hub(lab, ["sysctl", "-qw", "net.ipv4.ip_forward=1"]))
    run(*on_hub(lab, ["nft", "-f", "-"]), stdin=HUB_RULES)
    run("nft", "delete", "table", "ip", f"saltern-lab-{lab}", check=False)
    rules = MACHINE_RULES % {"lab": lab, "link": link, "link_network": network}
    run("nft", "-f", "-", stdin=rules)


def _free_link():
    """The first way out that no lab has: its number and the name of its interface."""
    taken = {link["ifname"] for link in json.loads(run("ip", "-json", "link", "show").stdout)}
    for number in range(WAYS_OUT.num_addresses // 4):
        if f"saltern-out{number}" not in taken:
            return number, f"saltern-out{number}"
    raise LabError("There are too many labs on this machine: take one down first.")


def _ip(name, *arguments, check=True) -> subprocess.CompletedProcess:
    return run("ip", "-n", name, *arguments, check=check)
