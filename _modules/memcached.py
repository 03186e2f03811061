"""
How a host's memcached fares.
"""

import socket

from salt.exceptions import CommandExecutionError


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


def _ask(command):
    """What memcached answers to a command whose answer ends with END."""
    where = __salt__["inventory.address"](), __salt__["settings.get"]("memcached")["port"]
    answer = b""
    try:
        with socket.create_connection(where, timeout=3) as connection:
            connection.sendall(f"{command}\r\n".encode())
            while not answer.endswith(b"END\r\n"):
                part = connection.recv(65536)
                if not part:
                    raise OSError("it closed the connection")
                answer += part
    except OSError as error:
        raise CommandExecutionError(
            f"memcached doesn't answer at {where[0]}:{where[1]}: {error}. "
            "See why with: systemctl status memcached"
        ) from error
    lines = (line.split(" ", 2) for line in answer.decode().splitlines())
    return {line[1]: line[2] for line in lines if line[0] == "STAT"}
