"""
The farm's inventory: which hosts there are, what they are for, how they are reached.

The list is ``pillar/environments/<environment>/hosts.yaml``. Whatever needs peers (balancer
pools, database access, cache rings) asks :func:`peers`, so that there is one reading of it.
"""

import fnmatch
import ipaddress

import salt.utils.data
from salt.exceptions import CommandExecutionError

# What every host gets, before anything else.
EVERYWHERE = ["os", "accounts", "ssh", "firewall", "updates", "rsyslog"]

# The services that a role brings, in the order in which a host gets them.
ROLES = {
    "master": [],
    "database": ["backup", "postgres", "pgbouncer"],
    "mariadb": ["mariadb"],
    "backup": ["uploads", "backup"],
    "log": [],
    "cache": ["memcached", "redis"],
    "broker": ["rabbitmq"],
    "worker": ["twemproxy", "django", "celery"],
    "app": ["twemproxy", "django", "uwsgi", "nginx", "uploads"],
    "accelerator": ["varnish"],
    "loadbalancer": ["haproxy", "keepalived"],
}


def roles(host=None):
    """
    The roles of a host.

    host
        A minion id; this host if not given.

    Returns a list of role names. Raises ``CommandExecutionError`` if no inventory lists the host
    or if it is given a role that doesn't exist.

    CLI Example:

    .. code-block:: bash

        salt '*' inventory.roles
    """
    host = host or __opts__["id"]
    named = list(_entry(host)[1].get("roles") or [])
    unknown = sorted(set(named) - set(ROLES))
    if unknown:
        raise CommandExecutionError(
            f"{_file()}: {host} has the role {unknown[0]!r}, which doesn't exist. "
            f"Roles: {', '.join(ROLES)}."
        )
    return named


def services(host=None):
    """
    The services that a host's roles bring, each once, in the order in which they are set up.

    host
        A minion id; this host if not given.

    Returns a list of service names: the folders of the state tree. Raises
    ``CommandExecutionError`` as :func:`roles` does.

    CLI Example:

    .. code-block:: bash

        salt '*' inventory.services
    """
    mine = roles(host)
    brought = [service for role in ROLES if role in mine for service in _brought(role)]
    return EVERYWHERE + list(dict.fromkeys(brought))


def all_roles():
    """
    The roles that there are.

    Returns a list of their names.

    CLI Example:

    .. code-block:: bash

        salt-call inventory.all_roles
    """
    return list(ROLES)


def _brought(role):
    """The services that a role brings. What a broker is, is the operator's choice."""
    if role != "broker":
        return ROLES[role]
    chosen = salt.utils.data.traverse_dict_and_list(__pillar__, "overrides:celery:broker")
    return ["redis"] if chosen == "redis" else ROLES[role]


def peers(role):
    """
    The hosts of this environment that have a role, this one included if it has it.

    role
        The name of a role.

    Returns a list of ``{"id": ..., "address": ...}`` sorted by id. Hosts that stand in the
    inventory as a pattern are those whose address the mine knows. Raises
    ``CommandExecutionError`` if there is no such role.

    CLI Example:

    .. code-block:: bash

        salt 'lb*' inventory.peers app
    """
    if role not in ROLES:
        raise CommandExecutionError(f"There is no role {role!r}. Roles: {', '.join(ROLES)}.")
    return _addresses(lambda host: role in (host.get("roles") or []))


def all_():
    """
    All hosts of this environment.

    Returns a list as :func:`peers` does.

    CLI Example:

    .. code-block:: bash

        salt '*' inventory.all
    """
    return _addresses(lambda host: True)


def _addresses(wanted):
    """Ids and addresses of the hosts whose entry is wanted, patterns resolved by the mine."""
    hosts = __pillar__.get("hosts") or {}
    found = {}
    for entry, host in hosts.items():
        if not wanted(host):
            continue
        if not _is_pattern(entry):
            found[entry] = host["address"]
            continue
        mined = __salt__["mine.get"](entry, "inventory.address") or {}
        found.update({i: a for i, a in mined.items() if i not in hosts})
    return [{"id": i, "address": a} for i, a in sorted(found.items())]


def address(host=None):
    """
    The private address of a host.

    host
        A minion id; this host if not given.

    Returns the address as a string. Raises ``CommandExecutionError`` if no inventory lists the
    host, or if a host listed as a pattern has no address inside its ``network``.

    CLI Example:

    .. code-block:: bash

        salt '*' inventory.address
    """
    host = host or __opts__["id"]
    entry, facts = _entry(host)
    if not _is_pattern(entry):
        return facts["address"]
    if host != __opts__["id"]:
        mined = __salt__["mine.get"](host, "inventory.address") or {}
        if host in mined:
            return mined[host]
        raise CommandExecutionError(
            f"The address of {host} isn't in the mine yet: run `salt '{host}' mine.update`."
        )
    network = ipaddress.ip_network(facts["network"])
    own = [a for a in __grains__.get("ipv4", []) if ipaddress.ip_address(a) in network]
    if not own:
        raise CommandExecutionError(
            f"{_file()}: {host} has no address inside {network}, the network of {entry!r}."
        )
    return own[0]


def entry(host=None):
    """
    The key under which the inventory lists a host: its id, or a pattern that its id matches.

    host
        A minion id; this host if not given.

    Returns a string. Raises ``CommandExecutionError`` if no inventory lists the host.

    CLI Example:

    .. code-block:: bash

        salt '*' inventory.entry
    """
    return _entry(host or __opts__["id"])[0]


def primary(service="postgres"):
    """
    The address of the database host that takes writes: the one that ``postgres.primary`` in
    the overrides names, else the first host with the role ``database``; likewise for MariaDB.

    service
        ``postgres`` or ``mariadb``.

    Returns the address as a string. Raises ``CommandExecutionError`` if there is none.

    CLI Example:

    .. code-block:: bash

        salt 'db*' inventory.primary
    """
    named = __salt__["settings.get"](service)["primary"]
    if named:
        return address(named)
    role = next(role for role, brought in ROLES.items() if service in brought)
    found = peers(role)
    if not found:
        raise CommandExecutionError(f"{_file()}: no host has the role {role!r}.")
    return found[0]["address"]


def _entry(host):
    """The inventory's entry for a host: its key (an id or a pattern) and its facts."""
    hosts = __pillar__.get("hosts") or {}
    if host in hosts:
        return host, hosts[host]
    for entry, facts in hosts.items():
        if _is_pattern(entry) and fnmatch.fnmatch(host, entry):
            return entry, facts
    raise CommandExecutionError(
        f"No inventory lists the minion id {host!r}: add it, with its roles and its address, "
        f"to {_file()}."
    )


def _file():
    environment = __pillar__.get("environment") or "<environment>"
    return f"pillar/environments/{environment}/hosts.yaml"


def _is_pattern(entry):
    return any(sign in entry for sign in "*?[")


__func_alias__ = {"all_": "all"}
