"""
How much: the arithmetic behind every setting that is ``auto``.

Each function computes one service's values from what the host has (the grain ``hardware``), the
services that share it, and what the operator has set. Nothing here reads a file or asks Salt: the
same arguments always give the same values. ``docs/tuning.md`` tells why the formulas are as they
are.

What the services of a host may use together stays below nine tenths of its RAM; more RAM never
makes a value smaller.
"""

import math
from collections import namedtuple

K, M, G = 1 << 10, 1 << 20, 1 << 30

# Of a host's RAM, what may be promised; the rest is the kernel's, for buffers and page tables.
PROMISED = 0.9

# How services divide a host's RAM. Those with a ceiling get their part first, and what lies above
# their ceiling goes to the others. Below `least` a service starts but does its work badly.
Part = namedtuple("Part", "weight ceiling least")
PARTS = {
    "salt_master": Part(12, 768 * M, 400 * M),
    "haproxy": Part(8, 8 * G, 32 * M),
    "nginx": Part(4, 512 * M, 16 * M),
    "pgbouncer": Part(2, 256 * M, 8 * M),
    "varnish": Part(15, None, 64 * M),
    "uwsgi": Part(30, None, 150 * M),
    "celery": Part(15, None, 150 * M),
    "memcached": Part(8, None, 32 * M),
    "redis": Part(8, None, 32 * M),
    "postgres": Part(30, None, 192 * M),
    "mariadb": Part(30, None, 256 * M),
}

# What a Python process that serves a site may use before it is replaced.
PYTHON_PROCESS = 300 * M


def share(hardware, services, service):
    """
    The part of a host's RAM that a service may use.

    hardware
        The grain ``hardware``.
    services
        The names of the services of this host.
    service
        One of them.

    Returns whole bytes and a line that says how they were found.

    CLI Example:

    .. code-block:: bash

        salt-call --local tuning.share '{"ram_bytes": 8589934592}' '[postgres, os]' postgres
    """
    ram = hardware["ram_bytes"]
    free = max(0, PROMISED * ram - _system(ram))
    present = {name: PARTS[name] for name in services if name in PARTS}
    total = sum(part.weight for part in present.values())
    fixed = {
        name: min(part.ceiling, free * part.weight / total)
        for name, part in present.items()
        if part.ceiling
    }
    told = f"90 % of {_text(ram)} RAM less {_text(_system(ram))} for the system"
    if service in fixed:
        if len(present) == 1 and fixed[service] < PARTS[service].ceiling:
            return int(fixed[service]), told
        return int(fixed[service]), f"{_text(fixed[service])} of {told}"
    rest = free - sum(fixed.values())
    elastic = sum(part.weight for part in present.values() if not part.ceiling)
    found = int(rest * present[service].weight / elastic)
    if len(present) == 1:
        return found, told
    return found, f"a share of {_text(found)} beside {_others(present, service)}"


def postgres(hardware, services, settings, sites=1):
    """
    Connections and memory of PostgreSQL.

    hardware
        The grain ``hardware``.
    services
        The names of the services of this host.
    settings
        What is set, by name of the key; ``auto`` where nothing is.
    sites
        How many sites the host serves.

    Returns a dictionary from key to ``(value, arithmetic)``.

    CLI Example:

    .. code-block:: bash

        salt 'db1' settings.explain postgres
    """
    part, told = share(hardware, services, "postgres")
    ram, name = _basis(hardware, services, "postgres", part)
    shared_buffers = _clamp(ram / 4, 16 * M, 8 * G)
    maintenance = _clamp(ram / 16, M, 2 * G)
    rest = max(0, part - _postgres_fixed(shared_buffers, maintenance))
    connections = _clamp(rest / (_CONNECTION + 4 * M), 10, 300)
    wanted = _set(settings, "max_connections", connections)
    book = 2 * ram / wanted
    bound = rest / wanted - _CONNECTION
    work_mem = max(64 * K, min(book, bound))
    turning = bool(hardware.get("rotational"))
    return {
        "max_connections": (
            connections,
            f"{_text(rest)} left of {_text(part)} ({told}) / ({_text(_CONNECTION)} a connection "
            "+ 4M of work_mem), 10 to 300",
        ),
        "shared_buffers": (
            _size(shared_buffers),
            f"{_text(ram)} {name} / 4, 16M to 8G",
        ),
        "work_mem": (
            _size(work_mem),
            f"2 x {_text(ram)} {name} / {wanted} connections = {_text(book)}, bounded by "
            f"{_text(rest)} left of {_text(part)} / {wanted} - {_text(_CONNECTION)} a connection "
            f"= {_text(max(0, bound))}, at least 64k",
        ),
        "maintenance_work_mem": (
            _size(maintenance),
            f"{_text(ram)} {name} / 16, 1M to 2G",
        ),
        "effective_cache_size": (
            _size(max(M, ram / 2)),
            f"{_text(ram)} {name} / 2",
        ),
        "random_page_cost": (4 if turning else 1.1, f"the disk {_TURNS[turning]}"),
        "effective_io_concurrency": (2 if turning else 200, f"the disk {_TURNS[turning]}"),
    }


_TURNS = {True: "turns: moving its head costs", False: "doesn't turn"}

# What a PostgreSQL backend needs beside work_mem: its caches of the catalogue, plans, buffers.
_CONNECTION = 4 * M


def _postgres_fixed(shared_buffers, maintenance):
    """RAM of PostgreSQL that doesn't depend on connections: 12M for its helper processes, and
    three autovacuum workers beside one VACUUM or CREATE INDEX by hand."""
    return shared_buffers + 4 * maintenance + 12 * M


def pgbouncer(hardware, services, settings, sites=1):
    """
    Clients and connections of PgBouncer.

    hardware, services, settings, sites
        As in :func:`postgres`.

    Returns a dictionary from key to ``(value, arithmetic)``.

    CLI Example:

    .. code-block:: bash

        salt 'db1' settings.explain pgbouncer
    """
    part, told = share(hardware, services, "pgbouncer")
    server = postgres(hardware, services, {})["max_connections"][0]
    kept = min(15, server // 3)
    files = hardware["open_files"] - 500 - server
    by_ram = part // _PGBOUNCER_CLIENT
    return {
        "max_clients": (
            _clamp(min(by_ram, files), 100, 5000),
            f"{_text(part)} ({told}) / {_text(_PGBOUNCER_CLIENT)} a client = {by_ram}; "
            f"{hardware['open_files']} open files allow {files}; 100 to 5000",
        ),
        "pool_size": (
            max(1, (server - kept) // max(1, sites)),
            f"({server} connections of the server - {kept} kept for migrations, backups and you) "
            f"/ {max(1, sites)} sites",
        ),
    }


_PGBOUNCER_CLIENT = 32 * K  # its buffers, and those of TLS


def uwsgi(hardware, services, settings, sites=1):
    """
    Processes of each site and their memory.

    hardware, services, settings, sites
        As in :func:`postgres`.

    Returns a dictionary from key to ``(value, arithmetic)``.

    CLI Example:

    .. code-block:: bash

        salt 'app1' settings.explain uwsgi
    """
    part, told = share(hardware, services, "uwsgi")
    part //= sites
    told += f", for each of {sites} sites" if sites > 1 else ""
    cores = hardware["cores"]
    crowd = _others({s: 1 for s in services if s in PARTS and s != "nginx"}, "uwsgi")
    wanted, formula = (
        (math.floor(cores) + 1, f"{cores:g} cores + 1 beside {crowd}")
        if crowd
        else (math.floor(2 * cores), f"2 x {cores:g} cores")
    )
    memory = _clamp(part, 32 * M, PYTHON_PROCESS)
    each = _bytes(settings, "worker_memory", memory)
    return {
        "worker_memory": (
            _size(memory),
            f"{_text(part)} ({told}), at most {_text(PYTHON_PROCESS)}",
        ),
        "processes": (
            _clamp(min(wanted, part // each), 1, 1024),
            f"{formula} = {max(1, wanted)}, bounded by {_text(part)} ({told}) / {_text(each)} "
            f"of worker_memory = {part // each}",
        ),
        "listen": (
            min(1024, hardware["somaxconn"]),
            f"1024, at most the kernel's somaxconn of {hardware['somaxconn']}",
        ),
    }


def nginx(hardware, services, settings, sites=1):
    """
    Worker processes and their connections.

    hardware, services, settings, sites
        As in :func:`postgres`.

    Returns a dictionary from key to ``(value, arithmetic)``.

    CLI Example:

    .. code-block:: bash

        salt 'app1' settings.explain nginx
    """
    part, told = share(hardware, services, "nginx")
    cores = max(1, math.floor(hardware["cores"]))
    files = (hardware["open_files"] - 100) // 2
    by_ram = part // 2 // (_NGINX_CONNECTION * cores)
    return {
        "workers": (
            _clamp(min(cores, part // 2 // _NGINX_WORKER), 1, 1024),
            f"one for each of {cores} cores, in half of {_text(part)} ({told}) at "
            f"{_text(_NGINX_WORKER)} each",
        ),
        "connections": (
            max(64, min(by_ram, files, 16384)),
            f"half of {_text(part)} ({told}) / {cores} cores / {_text(_NGINX_CONNECTION)} a "
            f"connection = {by_ram}; {hardware['open_files']} open files allow {files}; "
            "64 to 16384",
        ),
    }


_NGINX_WORKER = 4 * M
_NGINX_CONNECTION = 16 * K  # half of what a request needs that is handed on: it has two


def varnish(hardware, services, settings, sites=1):
    """
    Storage and threads of Varnish.

    hardware, services, settings, sites
        As in :func:`postgres`.

    Returns a dictionary from key to ``(value, arithmetic)``.

    CLI Example:

    .. code-block:: bash

        salt 'cache1' settings.explain varnish
    """
    part, told = share(hardware, services, "varnish")
    threads = part * 0.15 / (2 * _VARNISH_THREAD)
    return {
        "storage": (
            _size(max(16 * M, part * 0.65)),
            f"65 % of {_text(part)} ({told}); the rest is for threads, what passes through and "
            "1k for each object",
        ),
        "threads_max": (
            _clamp(threads, 100, 5000),
            f"15 % of {_text(part)} ({told}) / 2 pools / {_text(_VARNISH_THREAD)} a thread, "
            "100 to 5000",
        ),
    }


_VARNISH_THREAD = 64 * K  # stack and workspaces, as far as they are touched


def haproxy(hardware, services, settings, sites=1):
    """
    Connections and threads of HAProxy.

    hardware, services, settings, sites
        As in :func:`postgres`.

    Returns a dictionary from key to ``(value, arithmetic)``.

    CLI Example:

    .. code-block:: bash

        salt 'lb1' settings.explain haproxy
    """
    part, told = share(hardware, services, "haproxy")
    by_ram = int(max(0, part - _HAPROXY_BASE) // _HAPROXY_CONNECTION)
    by_files = (hardware["open_files"] - 300) // 2
    return {
        "maxconn": (
            max(100, min(by_ram, by_files) // 100 * 100),
            f"{_text(part)} ({told}) less {_text(_HAPROXY_BASE)} / {_text(_HAPROXY_CONNECTION)} "
            f"a connection = {by_ram}; {hardware['open_files']} open files allow {by_files}",
        ),
        "threads": (
            _clamp(hardware["cores"], 1, 64),
            f"one for each of {hardware['cores']:g} cores, at most 64",
        ),
    }


_HAPROXY_BASE = 10 * M
_HAPROXY_CONNECTION = 64 * K  # two buffers of 16k for each side, and TLS


def _system(ram):
    """RAM for the system itself, Salt's minion included."""
    return _clamp(ram / 8, 128 * M, G)


def _basis(hardware, services, service, part):
    """The RAM that a book's formula means: all of it on a host of one's own, else one's share."""
    alone = not _others({name: 1 for name in services if name in PARTS}, service)
    return (hardware["ram_bytes"], "RAM") if alone else (part, "of share")


def _others(present, service):
    return ", ".join(name for name in present if name != service)


def _set(settings, key, computed):
    """What the operator has set, or else what was computed."""
    value = settings.get(key, "auto")
    return computed if value == "auto" else value


def _bytes(settings, key, computed):
    value = _set(settings, key, computed)
    return getattr(value, "bytes", value)


def _clamp(value, least, most):
    return int(max(least, min(value, most)))


def _size(number):
    """A size as operators write it, rounded down to whole M, or to whole k below 1M."""
    number = int(number)
    return f"{number // M}M" if number >= M else f"{number // K}k"


def _text(number):
    """A size for eyes."""
    return _size(number)
