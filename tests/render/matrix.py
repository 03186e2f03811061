"""
The hosts that the render tests render: farms, sizes, systems.

A farm is an inventory in the place of the lab's: its hosts get the lab's sites and secrets through
the real pillar. Every host of every farm is rendered: the one with all roles for each size on each
system, those with one role for each size and for each system, the others for two sizes that lie far
apart, on Debian 12.
"""

import functools
import itertools

import salt.loader
import yaml

from tests.render import sandbox, tree

M, G = 1 << 20, 1 << 30

# RAM in bytes, cores.
SIZES = {
    "512M": (512 * M, 1),
    "1G": (1 * G, 2),
    "8G": (8 * G, 4),
    "64G": (64 * G, 16),
    "1T": (1024 * G, 128),
}
# What Salt's own grains say of a system.
SYSTEMS = {
    "bookworm": {
        "os": "Debian",
        "osfullname": "Debian GNU/Linux",
        "osrelease": "12",
        "osrelease_info": [12],
        "osmajorrelease": 12,
        "osfinger": "Debian-12",
    },
    "trixie": {
        "os": "Debian",
        "osfullname": "Debian GNU/Linux",
        "osrelease": "13",
        "osrelease_info": [13],
        "osmajorrelease": 13,
        "osfinger": "Debian-13",
    },
    "jammy": {
        "os": "Ubuntu",
        "osfullname": "Ubuntu",
        "osrelease": "22.04",
        "osrelease_info": [22, 4],
        "osmajorrelease": 22,
        "osfinger": "Ubuntu-22.04",
    },
    "noble": {
        "os": "Ubuntu",
        "osfullname": "Ubuntu",
        "osrelease": "24.04",
        "osrelease_info": [24, 4],
        "osmajorrelease": 24,
        "osfinger": "Ubuntu-24.04",
    },
}


def _farm(**hosts):
    """An inventory of hosts with these roles, addressed in the order in which they stand."""
    return {
        name: {"address": f"198.18.0.{100 + number}", "roles": roles}
        for number, (name, roles) in enumerate(hosts.items())
    }


def _away(transport):
    """A log host that passes everything on: to a syslog server and to Elasticsearch."""
    rsyslog = {
        "outside": {"host": "logs.example", "transport": transport},
        "elasticsearch": {"servers": ["https://search.example:9200"], "user": "saltern"},
    }
    settings = {"settings": {"rsyslog": rsyslog}}
    return {name: facts | settings for name, facts in _farm(log=["log"]).items()}


def _lab():
    return yaml.safe_load((tree.ROOT / "pillar/environments/lab/hosts.yaml").read_text())["hosts"]


ROLES = tree.roles()

FARMS = {
    "lab": _lab(),
    # Each role on a host of its own.
    "apart": _farm(**{role: [role] for role in ROLES}),
    # Everything on one host.
    "onebox": _farm(box=list(ROLES)),
    # A front and a back, and nothing kept before the app server.
    "pair": _farm(
        web=["loadbalancer", "app"],
        back=["worker", "cache", "broker", "database"],
    ),
    # The least: a site and its database.
    "least": _farm(web=["app"], db=["database"]),
    # Tiers that share hosts two by two.
    "shared": _farm(
        edge1=["loadbalancer", "accelerator"],
        edge2=["loadbalancer", "accelerator"],
        app1=["app", "worker"],
        app2=["app", "worker"],
        data1=["database", "cache"],
        data2=["database", "cache", "broker"],
    ),
    # Logs that leave the farm.
    **{f"away-{transport}": _away(transport) for transport in ("tls", "tcp", "udp")},
}


def hosts():
    """Every host to render, as (farm, minion id, size, system)."""
    for farm, inventory in FARMS.items():
        for host in inventory:
            yield from ((farm, host, size, system) for size, system in _variants(farm))


def _variants(farm):
    """The sizes and systems of a farm's hosts."""
    if farm == "onebox":
        return list(itertools.product(SIZES, SYSTEMS))
    if farm == "apart":
        others = [("8G", system) for system in SYSTEMS if system != "bookworm"]
        return [(size, "bookworm") for size in SIZES] + others
    return [("1G", "bookworm"), ("64G", "bookworm")]


@functools.cache
def _own_grains():
    return salt.loader.grains(tree.options())


def grains(farm, host, size, system):
    """This machine's grains, with the facts of the host to render in their place."""
    ram, cores = SIZES[size]
    own = _own_grains()
    address = FARMS[farm][host]["address"]
    return {
        **own,
        **SYSTEMS[system],
        "id": host,
        "host": host,
        "localhost": host,
        "nodename": host,
        "fqdn": host,
        "os_family": "Debian",
        "oscodename": system,
        "lsb_distrib_codename": system,
        "init": "systemd",
        "ipv4": ["127.0.0.1", address],
        "fqdn_ip4": [address],
        "ip_interfaces": {"lo": ["127.0.0.1"], sandbox.INTERFACE: [address]},
        "ip4_interfaces": {"lo": ["127.0.0.1"], sandbox.INTERFACE: [address]},
        "mem_total": ram // M,
        "num_cpus": cores,
        "hardware": {
            **own["hardware"],
            "ram_bytes": ram,
            "cores": float(cores),
            "kind": "virtual",
            "somaxconn": 4096,
            "open_files": 524288,
        },
    }
