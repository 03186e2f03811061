"""
How a host's memcached fares, and forgetting what one site has in it.
"""

import contextlib
import socket
from urllib.parse import unquote

from salt.exceptions import CommandExecutionError

_PATIENCE = 10  # seconds
# Keys that are deleted with one request.
_AT_ONCE = 1000


def stats():
    """
    The counters of this host's memcached.

    Returns a dictionary: ``hit_rate`` in percent or None if nothing was asked for, ``fill`` in
    percent of the memory limit, ``memory`` and ``memory_limit`` in bytes, ``items``, ``gets``,
    ``evictions`` since the start, ``connections``, ``refused_connections`` and ``uptime`` in
    seconds. Raises ``CommandExecutionError`` if it doesn't answer.

    CLI Example:

    .. code-block:: bash

        salt 'cache*' memcached.stats
    """
    told = _ask("stats")
    hits, gets = int(told["get_hits"]), int(told["cmd_get"])
    used, limit = int(told["bytes"]), int(told["limit_maxbytes"])
    return {
        "hit_rate": round(100 * hits / gets, 1) if gets else None,
        "fill": round(100 * used / limit, 1),
        "memory": used,
        "memory_limit": limit,
        "items": int(told["curr_items"]),
        "gets": gets,
        "evictions": int(told["evictions"]),
        "connections": int(told["curr_connections"]),
        "refused_connections": int(told["rejected_connections"]),
        "uptime": int(told["uptime"]),
    }


def clear(site, version=None):
    """
    Forget what one site keeps in this host's memcached, and nothing of another site.

    To be called on all cache hosts, as each holds a part. The keys are those of Django's cache
    backends: ``<site>:<version>:<key>``.

    site
        The site's name.
    version
        Only what was kept under this ``cache_version``; under all if not given.

    Returns a dictionary: ``cleared``, how many items. Raises ``CommandExecutionError`` if there is
    no such site, or memcached doesn't answer or is listing its keys for somebody else.

    CLI Example:

    .. code-block:: bash

        salt 'cache*' memcached.clear newsroom
        salt 'cache*' memcached.clear newsroom version=3
    """
    prefix = __salt__["sites.cache_prefix"](site, version)
    keys = [
        unquote(word[4:])
        for line in _talk("lru_crawler metadump all")
        for word in line.split()[:1]
        if word.startswith("key=")
    ]
    mine = [key for key in keys if key.startswith(prefix)]
    cleared = 0
    for start in range(0, len(mine), _AT_ONCE):
        batch = mine[start : start + _AT_ONCE]
        # Its answer to `mn` comes last: all others came before.
        told = _talk("\r\n".join([*(f"delete {key}" for key in batch), "mn"]), end="MN")
        cleared += told.count("DELETED")
    return {"cleared": cleared}


def _ask(command):
    """What memcached answers to a command whose answer is a list of STAT lines."""
    lines = (line.split(" ", 2) for line in _talk(command))
    return {line[1]: line[2] for line in lines if line[0] == "STAT"}


def _talk(command, end="END"):
    """The lines that memcached answers to a command, up to the line that ends its answer."""
    where = __salt__["inventory.address"](), __salt__["settings.get"]("memcached")["port"]
    lines = []
    try:
        with socket.create_connection(where, timeout=_PATIENCE) as connection:
            connection.sendall(f"{command}\r\n".encode())
            with contextlib.closing(connection.makefile(encoding="utf-8")) as answer:
                for line in answer:
                    lines.append(line.rstrip("\r\n"))
                    if lines[-1] == end:
                        return lines
                    if lines[-1].startswith(("ERROR", "CLIENT_ERROR", "SERVER_ERROR", "BUSY")):
                        raise OSError(lines[-1])
        raise OSError("it closed the connection")
    except OSError as error:
        raise CommandExecutionError(
            f"memcached doesn't answer at {where[0]}:{where[1]}: {error}. "
            "See why with: systemctl status memcached"
        ) from error
