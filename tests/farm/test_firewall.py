"""The firewall: what reaches what, seen by connecting; and the way back when it shuts too much."""

import concurrent.futures
import functools
import json
import re
import time

import pytest

STRANGER = "a client on the network"
# By role: port -> who reaches it from another host. Whatever listens beside these is for nobody.
# Not read from the tree: this is what the farm should be like.
OPEN = {
    "master": {4505: {"farm"}, 4506: {"farm"}, 9418: {"farm"}},
    "loadbalancer": {80: {"everyone"}, 443: {"everyone"}, 8404: {"farm"}},
    "accelerator": {6081: {"loadbalancer", "app", "worker"}, 6086: {"loadbalancer"}},
    "app": {8080: {"accelerator", "loadbalancer"}},
    "cache": {11211: {"app", "worker"}, 6380: {"app", "worker", "cache"}},
    "broker": {5672: {"app", "worker"}, 4369: {"broker"}, 25672: {"broker"}},
    "database": {
        5432: {"app", "worker", "database", "backup"},
        6432: {"app", "worker"},
        8432: {"backup"},
    },
    "backup": {8432: {"database"}, 8433: {"app"}},
    "log": {2514: {"farm"}},
}
EVERYWHERE = {22: {"everyone"}}

# Connects to all targets at once; prints those that answered.
KNOCK = """
import concurrent.futures, json, socket, sys

def knock(target):
    try:
        socket.create_connection(tuple(target), timeout=5).close()
        return True
    except OSError:
        return False

targets = json.loads(sys.argv[1])
with concurrent.futures.ThreadPoolExecutor(len(targets)) as pool:
    print(json.dumps([t for t, open_ in zip(targets, pool.map(knock, targets)) if open_]))
"""
SHUT = """
add table inet saltern
delete table inet saltern
table inet saltern {
    chain input { type filter hook input priority filter; policy drop; iif lo accept; }
}
"""


def listening(lab, host):
    """The TCP ports on which something of a host listens to the network."""
    found = set()
    for line in lab.run(host, "ss", "--no-header", "-lnt").stdout.splitlines():
        address, _, port = line.split()[3].rpartition(":")
        if not re.match(r"127\.|\[::1\]|\[::ffff:127", address):
            found.add(int(port))
    return found


def readers(host):
    """Port -> who should reach it, for a host of the lab."""
    found = dict(EVERYWHERE)
    for role in host.roles:
        for port, whom in OPEN.get(role, {}).items():
            found[port] = found.get(port, set()) | whom
    return found


def may(origin, whom, lab):
    """Whether an origin is among those that a port is for."""
    roles = {STRANGER} if origin == STRANGER else {"farm", *lab.hosts[origin].roles}
    return "everyone" in whom or bool(whom & roles)


def knock(lab, origin, targets):
    """Which of these (address, port) answer an origin."""
    words = ["python3", "-c", KNOCK, json.dumps(sorted(targets))]
    ask = lab.on_hub if origin == STRANGER else functools.partial(lab.run, origin)
    return {(address, port) for address, port in json.loads(ask(*words).stdout)}


def test_every_port_is_open_for_those_that_need_it_and_for_nobody_else(lab):
    ports = {name: listening(lab, name) for name in lab.hosts}
    silent = {
        (name, port)
        for name, host in lab.hosts.items()
        for port in set(readers(host)) - ports[name]
    }
    assert not silent, f"nothing listens there: {silent}"

    def wrong(origin):
        wanted, targets = set(), set()
        for name, host in lab.hosts.items():
            for port in ports[name] if name != origin else ():
                targets.add((host.address, port))
                if may(origin, readers(host).get(port, set()), lab):
                    wanted.add((host.address, port))
        found = knock(lab, origin, targets)
        deadline = time.monotonic() + 60
        while wanted - found and time.monotonic() < deadline:
            found |= knock(lab, origin, wanted - found)  # the machine may be busy
        return {f"{origin} to {a}:{p} is open" for a, p in found - wanted} | {
            f"{origin} to {a}:{p} is shut" for a, p in wanted - found
        }

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        problems = set().union(*pool.map(wrong, [*lab.hosts, STRANGER]))
    assert not problems, "\n".join(sorted(problems))


def test_what_is_shut_is_shut_for_the_newer_addresses_too(lab):
    """git's daemon listens to both families; for SSH everyone may come."""
    shown = lab.run("master", "ip", "-6", "-o", "addr", "show", "dev", "host0", "scope", "link")
    address = re.search(r"inet6 (\S+)/", shown.stdout)[1] + "%farm"
    assert knock(lab, STRANGER, {(address, 22), (address, 9418)}) == {(address, 22)}


def test_rules_that_shut_the_master_out_go_again(lab):
    lab.run("cache2", "tee", "/root/shut.nft", stdin=SHUT)
    said = lab.run(
        "master", "salt", "cache2", "firewall.load", "/root/shut.nft", "3", "-t", "60", check=False
    )
    assert said.returncode != 0
    assert "doesn't reach its master any more" in said.stdout
    assert "in force again" in said.stdout
    assert lab.salt("cache2", "firewall.active", "/etc/saltern/nftables.conf") == {"cache2": True}


@pytest.mark.drill
def test_rules_go_again_when_the_minion_dies_before_they_are_proven(lab):
    lab.run("cache2", "tee", "/root/shut.nft", stdin=SHUT)
    lab.run(
        "cache2", "systemd-run", "--unit=dying", "--quiet",
        "salt-call", "firewall.load", "/root/shut.nft", "20",
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while "established" in lab.run("cache2", "nft", "list", "table", "inet", "saltern").stdout:
        assert time.monotonic() < deadline, "the rules never came"
        time.sleep(0.2)
    lab.run("cache2", "systemctl", "kill", "--signal=KILL", "dying")
    assert not knock(lab, STRANGER, {("198.18.0.22", 6081)})
    deadline = time.monotonic() + 90
    while "established" not in lab.run("cache2", "nft", "list", "table", "inet", "saltern").stdout:
        assert time.monotonic() < deadline, "the rules never went"
        time.sleep(1)
    assert lab.salt("cache2", "firewall.active", "/etc/saltern/nftables.conf") == {"cache2": True}


@pytest.mark.drill
def test_the_rules_are_there_after_a_loss_of_power(lab):
    lab.kill("cache2")
    lab.start("cache2")
    assert lab.salt("cache2", "firewall.active", "/etc/saltern/nftables.conf") == {"cache2": True}
    assert not knock(lab, STRANGER, {("198.18.0.22", 6081)})
