"""
The Redis servers of a host: which it should have, how they fare, taking over new settings live.

``salt/redis/`` declares them. Commands reach a server through its local socket as the user
``operator``.
"""

import hashlib
import re
import shlex

from salt.exceptions import CommandExecutionError

# Directives that a running server can't take over.
_AT_START = {"bind", "port", "unixsocket", "unixsocketperm", "pidfile", "logfile", "aclfile"}
_AT_START |= {"dir", "replicaof"}


def users(purpose):
    """
    Who may use a server, as Redis writes it: for its ``aclfile``.

    purpose
        ``cache``, ``session`` or ``broker``.

    Returns a list of dictionaries: ``name``, ``sha256`` of the password and ``rules``. A site
    reaches only keys and channels that begin with its name. Raises ``CommandExecutionError`` if a
    secret is missing.

    CLI Example:

    .. code-block:: bash

        salt 'cache1' redis.users session
    """
    broker = purpose == "broker"
    password = __salt__["sites.broker_password" if broker else "sites.redis_password"]
    found = [_user("operator", operator_password(), "~* &* +@all")]
    for site in __salt__["sites.list"]():
        rules = f"~{site}:* &{site}:* +@all -@admin -@dangerous"
        if broker:
            # Who subscribes by a pattern, as Celery and Flower do, needs a rule with that very one.
            rules += f" &{site}:/0.celery.pidbox &{site}:/0.celeryev/* +info +keys"
        found.append(_user(site, password(site), rules))
    return found


def operator_password():
    """
    The password of the user that looks after the servers and copies them.

    Returns the password. Raises ``CommandExecutionError`` if this host's pillar doesn't hold it.

    CLI Example:

    .. code-block:: bash

        salt 'cache1' redis.operator_password
    """
    return __salt__["sites.secret"]("redis", "operator")


def stats(purpose=None):
    """
    How the servers of this host fare.

    purpose
        Only the server for this purpose.

    Returns a dictionary by purpose: ``up``, and where it is: ``role``, ``memory_percent``,
    ``memory`` and ``memory_limit`` in bytes, ``keys``, ``hit_rate`` in percent or None,
    ``evicted`` and ``refused`` since the start, ``clients``, ``operations_per_second``,
    ``replicas`` or ``copy_is_current``, ``uptime`` in seconds. A server that is down makes the
    command's exit code 1.

    CLI Example:

    .. code-block:: bash

        salt 'cache*' redis.stats
    """
    wanted = [__salt__["redis.server"](purpose)] if purpose else __salt__["redis.servers"]()
    return {one["purpose"]: _stats(one["purpose"]) for one in wanted}


def _stats(purpose):
    try:
        info = _info(purpose)
    except CommandExecutionError as error:
        __context__["retcode"] = 1
        return {"up": False, "error": str(error)}
    hits, misses = int(info["keyspace_hits"]), int(info["keyspace_misses"])
    used, limit = int(info["used_memory"]), int(info["maxmemory"])
    found = {
        "up": True,
        "role": "primary" if info["role"] == "master" else "replica",
        "memory": used,
        "memory_limit": limit,
        "memory_percent": round(100 * used / limit, 1) if limit else None,
        "keys": sum(
            int(value.partition("keys=")[2].partition(",")[0])
            for key, value in info.items()
            if key[:2] == "db" and key[2:].isdigit()
        ),
        "hit_rate": round(100 * hits / (hits + misses), 1) if hits + misses else None,
        "evicted": int(info["evicted_keys"]),
        "refused": int(info["rejected_connections"]),
        "clients": int(info["connected_clients"]),
        "operations_per_second": int(info["instantaneous_ops_per_sec"]),
        "uptime": int(info["uptime_in_seconds"]),
    }
    if found["role"] == "primary":
        found["replicas"] = int(info["connected_slaves"])
    else:
        found["copy_is_current"] = info["master_link_status"] == "up"
    return found


def apply(purpose):
    """
    Let a running server take over its configuration file and its users, without a restart.

    purpose
        ``cache``, ``session`` or ``broker``.

    Returns a dictionary of what was changed. Raises ``CommandExecutionError`` if the server
    refuses a value. Address and port are taken over at the next start only.

    CLI Example:

    .. code-block:: bash

        salt 'cache1' redis.apply session
    """
    wanted, follows = _read(f"/etc/redis/redis-{purpose}.conf")
    changed = {}
    for directive, value in wanted.items():
        answer = _cli(purpose, "config", "get", directive).splitlines()
        running = answer[1] if len(answer) > 1 else ""
        if running != value:
            _expect_ok(purpose, "config", "set", directive, value)
            shown = directive == "masterauth"
            changed[directive] = "(secret)" if shown else {"old": running, "new": value}
    _expect_ok(purpose, "acl", "load")
    before = _info(purpose)
    leader = [before.get("master_host", ""), before.get("master_port", "")]
    if follows != [part for part in leader if part]:
        _expect_ok(purpose, "replicaof", *(follows or ["no", "one"]))
        changed["replicaof"] = {"old": " ".join(leader).strip(), "new": " ".join(follows)}
    return changed


def clear(site, purpose, version=None):
    """
    Forget what one site keeps in a Redis of this host, and nothing of another site.

    site
        The site's name.
    purpose
        ``cache`` or ``session``. Sessions that are kept nowhere else end.
    version
        Only what was kept under this ``cache_version``; under all if not given.

    Returns a dictionary: ``cleared``, how many keys. Raises ``CommandExecutionError`` if there is
    no such site, this host has no Redis for that purpose, it is a copy, or it doesn't answer.

    CLI Example:

    .. code-block:: bash

        salt cache1 redis.clear newsroom session
    """
    prefix = __salt__["sites.cache_prefix"](site, version)
    chosen = __salt__["redis.server"](purpose)
    if purpose == "broker":
        raise CommandExecutionError("Tasks aren't a cache: nothing was cleared.")
    if chosen["follows"]:
        primary = chosen["follows"]["id"]
        raise CommandExecutionError(f"This is a copy: clear it on {primary}.")
    pattern = re.sub(r"([\\*?\[\]])", r"\\\1", prefix) + "*"
    # In portions, as a server that holds millions of keys goes on serving meanwhile.
    script = (
        "local found = redis.call('SCAN', ARGV[1], 'MATCH', ARGV[2], 'COUNT', 1000) "
        "if #found[2] > 0 then redis.call('UNLINK', unpack(found[2])) end "
        "return found[1] .. ' ' .. #found[2]"
    )
    cursor, cleared = "0", 0
    while True:
        cursor, count = _cli(purpose, "eval", script, "0", cursor, pattern).split()
        cleared += int(count)
        if cursor == "0":
            return {"cleared": cleared}


def _read(path):
    """A configuration file's directives that can be set live, and whom the server follows."""
    with open(path, encoding="utf-8") as file:
        lines = [shlex.split(line) for line in file if line.strip() and line[0] != "#"]
    wanted = {line[0]: " ".join(line[1:]) for line in lines}
    follows = wanted.get("replicaof", "").split()
    return {key: value for key, value in wanted.items() if key not in _AT_START}, follows


def _user(name, password, rules):
    return {"name": name, "sha256": hashlib.sha256(password.encode()).hexdigest(), "rules": rules}


def _info(purpose):
    lines = (line.partition(":") for line in _cli(purpose, "info").splitlines())
    return {key: value for key, colon, value in lines if colon}


def _expect_ok(purpose, *command):
    answer = _cli(purpose, *command)
    if answer != "OK" and not answer.startswith("OK "):
        raise CommandExecutionError(f"Redis for {purpose}: {command[0]} {command[1]}: {answer}")


def _cli(purpose, *command):
    """Run a command on a server of this host; the password travels in the environment."""
    socket = f"/run/redis-{purpose}/redis-server.sock"
    result = __salt__["cmd.run_all"](
        ["redis-cli", "-s", socket, "--user", "operator", *command],
        env={"REDISCLI_AUTH": operator_password()},
        python_shell=False,
        ignore_retcode=True,
        output_loglevel="quiet",
    )
    if result["retcode"]:
        problem = result["stderr"] or result["stdout"]
        raise CommandExecutionError(f"The Redis for {purpose} doesn't answer: {problem}")
    return result["stdout"].strip()
