"""
The Redis servers that a host should have, worked out from inventory, settings and sites.

The part of ``redis`` that asks nothing of the host, in a file of its own: states ask for it while
they are rendered, and for salt-ssh that is on the master (``_wrapper/``).
"""

from salt.exceptions import CommandExecutionError

__virtualname__ = "redis"

# What a purpose asks of its server.
_PURPOSES = {
    "cache": {
        "persistent": False,
        "replicated": False,
        "eviction": "allkeys-lfu",
        "eviction_why": "Full: what is asked for least often goes.",
    },
    "session": {
        "persistent": True,
        "replicated": True,
        "eviction": "volatile-ttl",
        "eviction_why": "Full: the session that would end first goes.",
    },
    "broker": {
        "persistent": True,
        "replicated": False,
        "eviction": "noeviction",
        "eviction_why": "Full: a new task is refused; none that was accepted goes.",
    },
}


def __virtual__():
    return __virtualname__


def servers():
    """
    The Redis servers that this host should have.

    Returns a list of dictionaries: ``purpose``, ``port``, ``memory`` in bytes, ``sharing`` in
    words, ``persistent``, ``eviction``, ``eviction_why`` and ``follows``, the host
    (``{"id", "address"}``) whose writes it repeats, or None. Raises ``CommandExecutionError`` if
    the settings name a purpose or a host that doesn't exist.

    CLI Example:

    .. code-block:: bash

        salt 'cache*' redis.servers
    """
    settings = __salt__["settings.get"]("redis")
    purposes = _purposes(settings)
    return [
        {
            "purpose": purpose,
            "port": settings["ports"][purpose],
            "memory": settings["memory"].bytes // len(purposes),
            "sharing": f"shared evenly by {len(purposes)} Redis servers",
            "follows": _primary(settings) if _PURPOSES[purpose]["replicated"] else None,
            **_PURPOSES[purpose],
        }
        for purpose in purposes
    ]


def server(purpose):
    """
    One of the Redis servers that this host should have.

    purpose
        ``cache``, ``session`` or ``broker``.

    Returns a dictionary as :func:`servers` does. Raises ``CommandExecutionError`` if this host
    has none for that purpose.

    CLI Example:

    .. code-block:: bash

        salt 'cache1' redis.server session
    """
    found = [one for one in servers() if one["purpose"] == purpose]
    if not found:
        has = ", ".join(one["purpose"] for one in servers()) or "none"
        raise CommandExecutionError(
            f"{__opts__['id']} has no Redis for {purpose!r}. Its purposes: {has}."
        )
    return found[0]


def _purposes(settings):
    roles = __salt__["inventory.roles"]()
    wanted = list(settings["purposes"]) if "cache" in roles else []
    if "broker" in roles and __salt__["settings.get"]("celery")["broker"] == "redis":
        wanted.append("broker")
    unknown = [purpose for purpose in wanted if purpose not in _PURPOSES]
    if unknown:
        raise CommandExecutionError(
            f"redis.purposes: {unknown[0]!r} is no purpose. Allowed: cache, session."
        )
    return list(dict.fromkeys(wanted))


def _primary(settings):
    """The cache host that takes writes, or None if that is this host."""
    hosts = {host["id"]: host for host in __salt__["inventory.peers"]("cache")}
    named = settings["primary"] or min(hosts)
    if named not in hosts:
        raise CommandExecutionError(
            f"redis.primary: {named!r} is no cache host. Cache hosts: {', '.join(hosts)}."
        )
    return None if named == __opts__["id"] else hosts[named]
