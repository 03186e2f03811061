"""
How the caches look from a host that uses them: the counters of its twemproxy.
"""

import json
import socket
import time

from salt.exceptions import CommandExecutionError


def stats():
    """
    What this host's twemproxy counted since its start, at most a second ago.

    Returns a dictionary: ``failed``, the operations that a site saw fail, ``ejections``, how often
    a cache host was left out of the ring, and ``hosts``: by cache host ``requests``, ``errors``,
    ``timeouts``, ``waiting`` requests and ``left_out``, whether it is out of the ring now. Raises
    ``CommandExecutionError`` if twemproxy doesn't answer.

    CLI Example:

    .. code-block:: bash

        salt 'app*' twemproxy.stats
    """
    settings = __salt__["settings.get"]("twemproxy")
    pool = _ask(settings["stats_port"])["caches"]
    hosts = {name: told for name, told in pool.items() if isinstance(told, dict)}
    out_since = time.time() - settings["retry"].s
    return {
        "failed": pool["forward_error"],
        "ejections": pool["server_ejects"],
        "hosts": {
            name: {
                "requests": told["requests"],
                "errors": told["server_err"] + told["server_eof"],
                "timeouts": told["server_timedout"],
                "waiting": told["in_queue"] + told["out_queue"],
                "left_out": told["server_ejected_at"] / 1e6 > out_since,
            }
            for name, told in sorted(hosts.items())
        },
    }


def _ask(port):
    where = "127.0.0.1", port
    answer = b""
    try:
        with socket.create_connection(where, timeout=3) as connection:
            while part := connection.recv(65536):
                answer += part
    except OSError as error:
        raise CommandExecutionError(
            f"twemproxy doesn't answer at {where[0]}:{where[1]}: {error}. "
            "See why with: systemctl status nutcracker"
        ) from error
    return json.loads(answer)
