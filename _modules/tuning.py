"""
How much: the arithmetic behind every setting that is ``auto``.

There is a function for each service. It computes the service's values from what the host has (the
grain ``hardware``), the services that share it, what the operator has set and the number of sites.
Nothing here reads a file or asks Salt: the same arguments always give the same values.
``docs/tuning.md`` tells why the formulas are as they are.

What the services of a host are promised together stays below nine tenths of its RAM, and more RAM
never makes a value smaller. :func:`promised` adds up what given settings let each service use.
"""

import math
import re
import typing

K, M, G = 1 << 10, 1 << 20, 1 << 30


class Part(typing.NamedTuple):
    """A service's part of a host's RAM, beside the other services there."""

    weight: int
    floor: int  # what it can't be configured to do without
    least: int  # with less it starts, but does its work badly
    ceiling: int = None  # what lies above goes to the services without a ceiling


# How the services of a host divide its RAM: each gets its floor, then as much as it takes to come
# to its least, then of the rest by weight. One that isn't named here needs next to nothing.
PARTS = {
    "salt_master": Part(12, 48 * M, 300 * M, 768 * M),
    "haproxy": Part(8, 17 * M, 32 * M, 8 * G),
    "nginx": Part(4, 9 * M, 16 * M, 512 * M),
    "pgbouncer": Part(2, 2 * M, 8 * M, 256 * M),
    "rabbitmq": Part(10, 48 * M, 160 * M, 4 * G),
    "varnish": Part(15, 33 * M, 64 * M),
    "uwsgi": Part(30, 32 * M, 128 * M),
    "celery": Part(15, 32 * M, 128 * M),
    "memcached": Part(8, 20 * M, 24 * M),
    "redis": Part(8, 14 * M, 16 * M),
    "postgres": Part(30, 68 * M, 192 * M),
    "mariadb": Part(30, 72 * M, 256 * M),
}

# What a Python process of a site may use before it is replaced.
_PYTHON = 300 * M
# A PostgreSQL backend beside its work_mem (caches of the catalogue, plans); its helper processes;
# how many autovacuum workers there may be.
_POSTGRES_CONNECTION, _POSTGRES_HELPERS, _POSTGRES_VACUUMS = 3 * M, 12 * M, 3
# A MariaDB connection (sort, join and read buffers, stack) and the server without its pool.
_MARIADB_CONNECTION, _MARIADB_BASE = 3 * M, 22 * M
# nginx: a worker, and a connection; a request that is handed on has two.
_NGINX_WORKER, _NGINX_CONNECTION = 4 * M, 16 * K
# HAProxy: itself, and a connection with a buffer for each direction and TLS.
_HAPROXY_BASE, _HAPROXY_CONNECTION = 10 * M, 64 * K
# A Varnish thread: stack and workspaces, as far as they are touched. There are two pools of them.
_VARNISH_THREAD, _VARNISH_POOLS = 64 * K, 2
# What Varnish uses for each byte that it stores: it keeps about 1k for each object beside it.
_VARNISH_OBJECTS = 1.1
# The part of what Memcached, Redis and RabbitMQ use that holds their data; the rest is for
# bookkeeping, connections, and copies while Redis saves and RabbitMQ cleans up.
_MEMCACHED_DATA, _REDIS_DATA, _RABBITMQ_DATA = 0.85, 0.6, 0.6
_PGBOUNCER_CLIENT = 16 * K

# Files and connections that one process of a daemon has to be able to open: from its settings, and
# why. Below that, connections are refused before the settings say so.
_OPEN_FILES = {
    "haproxy": lambda v: (2 * v["maxconn"], "two for each of maxconn connections"),
    "varnish": lambda v: (131072, "as its authors ship it: visitors, app hosts, both kept open"),
    "nginx": lambda v: (v["open_files"], "open_files of each worker"),
    "uwsgi": lambda v: (4096, "a worker's requests, one a thread, and what a site opens"),
    "celery": lambda v: (4096, "four for each of at most 1024 processes"),
    "twemproxy": lambda v: (16384, "a connection for each process of a site"),
    "memcached": lambda v: (v["max_connections"], "max_connections, to which it sets itself"),
    "redis": lambda v: (
        max(65535, v["max_clients"] + 32),
        "max_clients and 32 for itself, at least 65535: it takes more clients without a restart",
    ),
    "rabbitmq": lambda v: (65536, "connections and the files of queues, as its authors advise"),
    "postgres": lambda v: (1024, "max_files_per_process is 1000"),
    "pgbouncer": lambda v: (v["max_clients"] + 500, "max_clients, and 500 to the server"),
    "mariadb": lambda v: (
        max(32768, 32100 + v["max_connections"], 5 * v["max_connections"]),
        "32100 for tables and max_connections, or five a connection, at least 32768",
    ),
}


def share(hardware, services, service):
    """
    The part of a host's RAM that a service may use.

    hardware
        The grain ``hardware``.
    services
        The names of the services of this host.
    service
        One of them.

    Returns whole bytes and how they were found, to be read.

    CLI Example:

    .. code-block:: bash

        salt-call --local tuning.share '{ram_bytes: 8589934592}' '[os, postgres]' postgres
    """
    ram = int(hardware["ram_bytes"])
    found = _division(max(0, ram * 9 // 10 - _system(ram)), services)[service]
    note = f"{_text(found)} = 90 % of {_text(ram)} RAM - {_text(_system(ram))} for the system"
    others = [name for name in services if name in PARTS and name != service]
    if others:
        note += f", less the parts of {', '.join(others)}"
    if found == PARTS[service].ceiling:
        note += ", at most that"
    return found, note


def _division(free, services):
    """What each of a host's services gets of the RAM that is free for them."""
    parts = {name: PARTS[name] for name in services if name in PARTS}
    floors = sum(part.floor for part in parts.values())
    wants = sum(part.least - part.floor for part in parts.values())
    rest = max(0, free - floors - wants)
    weights = sum(part.weight for part in parts.values())
    shares = {}
    for name, part in parts.items():
        shares[name] = min(part.floor, free * part.floor // floors)
        if wants:
            want = part.least - part.floor
            shares[name] += min(want, max(0, free - floors) * want // wants)
    left = rest
    for name, part in parts.items():
        if part.ceiling:
            more = min(part.ceiling - shares[name], rest * part.weight // weights)
            shares[name] += more
            left -= more
    weights = sum(part.weight for part in parts.values() if not part.ceiling)
    for name, part in parts.items():
        if not part.ceiling:
            shares[name] += left * part.weight // weights
    return shares


def os(hardware, services, settings, sites=1):
    """
    Limits of the kernel.

    hardware
        The grain ``hardware``.
    services
        The names of the services of this host.
    settings
        What is set for this service: key -> value, ``auto`` where nothing is.
    sites
        How many sites the host serves.

    Returns a dictionary from key to ``(value, how it was found)``.

    CLI Example:

    .. code-block:: bash

        salt '*' settings.explain os
    """
    ram = hardware["ram_bytes"]
    background = _clamp(ram / 40, 16 * M, 256 * M)
    return {
        "dirty_background": (
            _size(background),
            f"{_text(ram)} RAM / 40, 16M to 256M: writing starts early and in small pieces",
        ),
        "dirty": (
            _size(4 * background),
            f"4 x {_text(background)} of dirty_background: writers wait before it takes long",
        ),
    }


def haproxy(hardware, services, settings, sites=1):
    """
    Connections and threads. Arguments, return and example: as :func:`os`.

    CLI Example:

    .. code-block:: bash

        salt 'lb1' settings.explain haproxy
    """
    part, note = share(hardware, services, "haproxy")
    by_ram = max(0, part - _HAPROXY_BASE) // _HAPROXY_CONNECTION
    by_files = (hardware["open_files"] - 300) // 2
    return {
        "maxconn": (
            max(100, min(by_ram, by_files) // 100 * 100),
            f"({_text(part)} - {_text(_HAPROXY_BASE)}) / {_text(_HAPROXY_CONNECTION)} a "
            f"connection = {by_ram}; {hardware['open_files']} open files, two a connection, allow "
            f"{by_files}; in hundreds; {note}",
        ),
        "threads": (_clamp(hardware["cores"], 1, 64), f"{hardware['cores']:g} cores, 1 to 64"),
    }


def varnish(hardware, services, settings, sites=1):
    """
    Storage and threads. Arguments, return and example: as :func:`os`.

    CLI Example:

    .. code-block:: bash

        salt 'cache1' settings.explain varnish
    """
    part, note = share(hardware, services, "varnish")
    threads = _clamp(part * 0.15 / _VARNISH_POOLS / _VARNISH_THREAD, 100, 5000)
    passing = max(2 * M, part // 10)
    rest = part - threads * _VARNISH_POOLS * _VARNISH_THREAD - passing
    storage = max(16 * M, min(part * 0.65, rest / _VARNISH_OBJECTS))
    return {
        "storage": (
            _size(storage),
            f"65 % of {_text(part)}, as far as threads, a tenth for what passes through and 1k an "
            f"object leave it, at least 16M; {note}",
        ),
        "threads_max": (
            threads,
            f"15 % of {_text(part)} / {_VARNISH_POOLS} pools / {_text(_VARNISH_THREAD)} a thread, "
            f"100 to 5000; {note}",
        ),
    }


def nginx(hardware, services, settings, sites=1):
    """
    Workers and their connections. Arguments, return and example: as :func:`os`.

    CLI Example:

    .. code-block:: bash

        salt 'app1' settings.explain nginx
    """
    part, note = share(hardware, services, "nginx")
    cores = max(1, math.floor(hardware["cores"]))
    by_ram = part // 2 // cores // _NGINX_CONNECTION
    by_files = (hardware["open_files"] - 100) // 2
    connections = max(64, min(by_ram, by_files, 16384))
    wanted = _set(settings, "connections", connections)
    return {
        "workers": (
            _clamp(min(cores, part // 2 // _NGINX_WORKER), 1, 1024),
            f"{hardware['cores']:g} cores, as far as half of {_text(part)} holds workers of "
            f"{_text(_NGINX_WORKER)}; {note}",
        ),
        "connections": (
            connections,
            f"half of {_text(part)} / {cores} cores / {_text(_NGINX_CONNECTION)} a connection = "
            f"{by_ram}; {hardware['open_files']} open files, two a connection, allow {by_files}; "
            f"64 to 16384; {note}",
        ),
        "open_files": (
            2 * wanted + 100,
            f"2 for each of {wanted} connections, and 100 for files and logs",
        ),
    }


def uwsgi(hardware, services, settings, sites=1):
    """
    Each site's processes. Arguments, return and example: as :func:`os`.

    CLI Example:

    .. code-block:: bash

        salt 'app1' settings.explain uwsgi
    """
    cores = hardware["cores"]
    others = [name for name in services if name in PARTS and name not in ("uwsgi", "nginx")]
    if others:
        wanted, formula = math.floor(cores) + 1, f"{cores:g} cores + 1, beside {', '.join(others)}"
    else:
        wanted, formula = math.floor(2 * cores), f"2 x {cores:g} cores"
    found = _python(hardware, services, settings, sites, "uwsgi", "processes", wanted, formula)
    found["listen"] = (
        min(1024, hardware["somaxconn"]),
        f"1024, at most the kernel's somaxconn ({hardware['somaxconn']})",
    )
    return found


def celery(hardware, services, settings, sites=1):
    """
    Each site's worker processes, of all its queues together. Arguments, return and example: as
    :func:`os`.

    CLI Example:

    .. code-block:: bash

        salt 'worker1' settings.explain celery
    """
    cores = hardware["cores"]
    others = [name for name in services if name in PARTS and name not in ("celery", "rabbitmq")]
    if others:
        wanted, formula = math.floor(cores), f"{cores:g} cores, beside {', '.join(others)}"
    else:
        wanted, formula = math.floor(2 * cores), f"2 x {cores:g} cores"
    return _python(hardware, services, settings, sites, "celery", "concurrency", wanted, formula)


def _python(hardware, services, settings, sites, service, key, wanted, formula):
    """Processes of a site's code: as many as wanted, as far as RAM holds them."""
    part, note = share(hardware, services, service)
    part //= sites
    if sites > 1:
        note = f"{_text(part)} for each of {sites} sites; {note}"
    memory = _clamp(part, M, _PYTHON)
    each = _bytes(_set(settings, "worker_memory", memory))
    return {
        "worker_memory": (_size(memory), f"{_text(_PYTHON)}, at most {_text(part)}; {note}"),
        key: (
            _clamp(min(wanted, part // each), 1, 1024),
            f"{formula} = {max(1, wanted)}; {_text(part)} / {_text(each)} of worker_memory = "
            f"{part // each}; {note}",
        ),
    }


def memcached(hardware, services, settings, sites=1):
    """
    Memory and threads. Arguments, return and example: as :func:`os`.

    CLI Example:

    .. code-block:: bash

        salt 'cache1' settings.explain memcached
    """
    part, note = share(hardware, services, "memcached")
    return {
        "memory": (
            _size(max(16 * M, part * _MEMCACHED_DATA)),
            f"85 % of {_text(part)}, at least 16M; the rest is for its index and connections; "
            f"{note}",
        ),
        "threads": (_clamp(hardware["cores"], 4, 16), f"{hardware['cores']:g} cores, 4 to 16"),
    }


def redis(hardware, services, settings, sites=1):
    """
    Memory. Arguments, return and example: as :func:`os`.

    CLI Example:

    .. code-block:: bash

        salt 'cache1' settings.explain redis
    """
    part, note = share(hardware, services, "redis")
    return {
        "memory": (
            _size(max(8 * M, part * _REDIS_DATA)),
            f"60 % of {_text(part)}, at least 8M; the rest is for copies of what changes while it "
            f"saves; {note}",
        ),
    }


def rabbitmq(hardware, services, settings, sites=1):
    """
    Memory. Arguments, return and example: as :func:`os`.

    CLI Example:

    .. code-block:: bash

        salt 'worker1' settings.explain rabbitmq
    """
    part, note = share(hardware, services, "rabbitmq")
    return {
        "memory": (
            _size(part * _RABBITMQ_DATA),
            f"60 % of {_text(part)}; the rest is for cleaning up; {note}",
        ),
    }


def postgres(hardware, services, settings, sites=1):
    """
    Connections, memory and costs. Arguments, return and example: as :func:`os`.

    CLI Example:

    .. code-block:: bash

        salt 'db1' settings.explain postgres
    """
    part, note = share(hardware, services, "postgres")
    ram, basis = _basis(hardware, services, "postgres", part)
    buffers = _clamp(ram / 4, 16 * M, 8 * G)
    maintenance = _clamp(ram / 16, M, 2 * G)
    vacuum = _clamp(maintenance / 4, M, 2 * G)
    fixed = buffers + maintenance + _POSTGRES_VACUUMS * vacuum + _POSTGRES_HELPERS
    rest = max(0, part - fixed)
    connections = _postgres_connections(rest)
    wanted = _set(settings, "max_connections", connections)
    book = 2 * ram // wanted
    bound = max(0, rest // wanted - _POSTGRES_CONNECTION)
    turns = bool(hardware["rotational"])
    disk = {True: "the disk turns", False: "the disk doesn't turn"}.get(
        hardware["rotational"], "the disk doesn't say whether it turns: taken as one that doesn't"
    )
    return {
        "max_connections": (
            connections,
            f"({_text(part)} - {_text(fixed)} for buffers and maintenance) / "
            f"({_text(_POSTGRES_CONNECTION)} + 16M of work_mem) a connection, less work_mem where "
            f"that is below 40, 10 to 300; {note}",
        ),
        "shared_buffers": (_size(buffers), f"{basis} / 4, 16M to 8G"),
        "work_mem": (
            _size(max(64 * K, min(book, bound))),
            f"2 x {basis} / {wanted} connections = {_text(book)}, bounded by ({_text(part)} - "
            f"{_text(fixed)} for buffers and maintenance) / {wanted} - "
            f"{_text(_POSTGRES_CONNECTION)} = {_text(bound)}, at least 64k; {note}",
        ),
        "maintenance_work_mem": (_size(maintenance), f"{basis} / 16, 1M to 2G"),
        "autovacuum_work_mem": (
            _size(vacuum),
            f"{_text(maintenance)} of maintenance_work_mem / 4, at least 1M: "
            f"{_POSTGRES_VACUUMS} may run at once",
        ),
        "effective_cache_size": (_size(max(M, ram / 2)), f"{basis} / 2"),
        "random_page_cost": (4.0 if turns else 2.0, disk),
        "effective_io_concurrency": (2 if turns else 200, disk),
    }


def _postgres_connections(rest):
    """
    Connections that each can sort 16M in RAM: PgBouncer shares few of them among many clients, and
    a query that must go to disk costs more than a short wait. Where that makes less than 40, each
    gets down to 4M.
    """
    good, least = (rest / (_POSTGRES_CONNECTION + each) for each in (16 * M, 4 * M))
    return _clamp(max(good, min(40, least)), 10, 300)


def pgbouncer(hardware, services, settings, sites=1):
    """
    Clients, and connections to the database for each site. Arguments, return and example: as
    :func:`os`.

    CLI Example:

    .. code-block:: bash

        salt 'db1' settings.explain pgbouncer
    """
    part, note = share(hardware, services, "pgbouncer")
    cores = hardware["cores"]
    by_ram = part // _PGBOUNCER_CLIENT
    by_files = hardware["open_files"] - 1000
    pool, formula = _clamp(8 * cores, 20, 200), f"8 x {cores:g} cores, 20 to 200"
    if "postgres" in services:
        connections = postgres(hardware, services, {}, sites)["max_connections"][0]
        room = max(1, connections * 8 // 10 // sites)
        formula += f"; 80 % of {connections} connections / {sites} sites = {room}"
        pool = min(pool, room)
    return {
        "max_clients": (
            max(100, min(by_ram, by_files, 5000)),
            f"{_text(part)} / {_text(_PGBOUNCER_CLIENT)} a client = {by_ram}; "
            f"{hardware['open_files']} open files allow {by_files}; 100 to 5000; {note}",
        ),
        "pool_size": (pool, formula),
    }


def mariadb(hardware, services, settings, sites=1):
    """
    Connections and memory. Arguments, return and example: as :func:`os`.

    CLI Example:

    .. code-block:: bash

        salt 'db1' settings.explain mariadb
    """
    part, note = share(hardware, services, "mariadb")
    ram, basis = _basis(hardware, services, "mariadb", part)
    connections = _clamp(part / 8 / _MARIADB_CONNECTION, 10, 300)
    wanted = _set(settings, "max_connections", connections)
    book = ram * 8 // 10
    bound = (part - _MARIADB_BASE - wanted * _MARIADB_CONNECTION) * 10 // 11
    pool = max(16 * M, min(book, bound))
    if pool > 128 * M:  # the server would round up to a whole number of its chunks
        pool = pool // (128 * M) * 128 * M
    return {
        "max_connections": (
            connections,
            f"an eighth of {_text(part)} / {_text(_MARIADB_CONNECTION)} a connection, 10 to 300; "
            f"{note}",
        ),
        "innodb_buffer_pool_size": (
            _size(pool),
            f"80 % of {basis} = {_text(book)}, bounded by ({_text(part)} - "
            f"{_text(_MARIADB_BASE)} - {wanted} connections of {_text(_MARIADB_CONNECTION)}) / 1.1 "
            f"= {_text(max(0, bound))}, in steps of 128M; {note}",
        ),
    }


def open_files(service, settings):
    """
    The files and connections that one process of a service's daemon has to be able to open: what
    its unit says as ``LimitNOFILE``, and what :func:`limits.files` compares with.

    service
        The service's name.
    settings
        Its settings: key -> value, with nothing left ``auto``.

    Returns the number and how it was found; nothing for a service that needs no more than any.

    CLI Example:

    .. code-block:: bash

        salt-call --local tuning.open_files pgbouncer '{max_clients: 1000}'
    """
    if service not in _OPEN_FILES:
        return None
    number, why = _OPEN_FILES[service](settings)
    return number, f"{number}: {why}"


def promised(settings, sites=1):
    """
    The RAM that settings let each service of a host use.

    settings
        Service -> key -> value, with nothing left ``auto``.
    sites
        How many sites the host serves.

    Returns a dictionary from service to whole bytes. The system itself isn't among them.

    CLI Example:

    .. code-block:: bash

        salt-call --local tuning.promised '{redis: {memory: 600M}}'
    """
    return {
        name: int(_PROMISES[name](values, sites))
        for name, values in settings.items()
        if name in _PROMISES
    }


def warnings(hardware, services, settings, sites=1):
    """
    What about a host's RAM its operator should know.

    hardware, services, sites
        As for :func:`os`.
    settings
        As for :func:`promised`.

    Returns a list of sentences.

    CLI Example:

    .. code-block:: bash

        salt '*' settings.check
    """
    found = []
    for name in services:
        if name not in PARTS:
            continue
        part, note = share(hardware, services, name)
        if part < PARTS[name].least:
            found.append(
                f"This host is too small for {name}, which should have "
                f"{_text(PARTS[name].least)} ({note}). Give it more RAM or fewer roles."
            )
    ram = hardware["ram_bytes"]
    promises = {"the system": _system(ram), **promised(settings, sites)}
    total = sum(promises.values())
    if total > ram * 9 // 10:
        parts = ", ".join(f"{name} {_text(amount)}" for name, amount in promises.items())
        found.append(
            f"The settings promise {_text(total)} ({parts}), which is more than 90 % of "
            f"{_text(ram)} RAM. See `settings.diff` for what was set by hand."
        )
    return found


def _promised_postgres(values, _sites):
    maintenance = _bytes(values["maintenance_work_mem"])
    vacuum = _bytes(values.get("autovacuum_work_mem", maintenance))
    each = _bytes(values["work_mem"]) + _POSTGRES_CONNECTION
    fixed = maintenance + _POSTGRES_VACUUMS * vacuum + _POSTGRES_HELPERS
    return _bytes(values["shared_buffers"]) + fixed + values["max_connections"] * each


def _promised_mariadb(values, _sites):
    connections = values["max_connections"] * _MARIADB_CONNECTION
    return _bytes(values["innodb_buffer_pool_size"]) * 1.1 + _MARIADB_BASE + connections


def _promised_varnish(values, _sites):
    threads = values["threads_max"] * _VARNISH_POOLS * _VARNISH_THREAD
    return _bytes(values["storage"]) * _VARNISH_OBJECTS + threads


# What settings let a service use: (values, sites) -> bytes.
_PROMISES = {
    "haproxy": lambda v, _: _HAPROXY_BASE + v["maxconn"] * _HAPROXY_CONNECTION,
    "varnish": _promised_varnish,
    "nginx": lambda v, _: v["workers"] * (_NGINX_WORKER + v["connections"] * _NGINX_CONNECTION),
    "uwsgi": lambda v, sites: sites * v["processes"] * _bytes(v["worker_memory"]),
    "celery": lambda v, sites: sites * v["concurrency"] * _bytes(v["worker_memory"]),
    "memcached": lambda v, _: _bytes(v["memory"]) / _MEMCACHED_DATA,
    "redis": lambda v, _: _bytes(v["memory"]) / _REDIS_DATA,
    "rabbitmq": lambda v, _: _bytes(v["memory"]) / _RABBITMQ_DATA,
    "postgres": _promised_postgres,
    "pgbouncer": lambda v, _: v["max_clients"] * _PGBOUNCER_CLIENT,
    "mariadb": _promised_mariadb,
}


def _system(ram):
    """RAM for the system itself, Salt's minion included."""
    return _clamp(ram / 8, 128 * M, G)


def _basis(hardware, services, service, part):
    """The RAM that a book's formula means: all of it on a host of one's own, else one's share."""
    others = [name for name in services if name in PARTS and name not in (service, "pgbouncer")]
    if others:
        return part, f"{_text(part)} of share"
    return int(hardware["ram_bytes"]), f"{_text(hardware['ram_bytes'])} RAM"


def _set(settings, key, computed):
    """What the operator has set, or else what was computed."""
    value = settings.get(key, "auto")
    return computed if value == "auto" else value


def _bytes(value):
    """Bytes of a size as operators write it, or of a number of bytes."""
    if not isinstance(value, str):
        return value
    amount, unit = re.fullmatch(r"(\d+)([BkMG])", value).groups()
    return int(amount) * {"B": 1, "k": K, "M": M, "G": G}[unit]


def _clamp(value, least, most):
    return int(max(least, min(value, most)))


def _size(number):
    """A size as operators write it, rounded down to whole M, or to whole k below 1M."""
    number = int(number)
    return f"{number // M}M" if number >= M else f"{number // K}k"


_text = _size
