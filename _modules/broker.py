"""
RabbitMQ, the broker: who may use it, how its queues fare, the cluster of several brokers.
"""

import base64
import hashlib
import json
import pathlib
import time

from salt.exceptions import CommandExecutionError

_DATA = pathlib.Path("/var/lib/rabbitmq/mnesia")
# Seconds that a broker waits for its turn to join.
_TURN = 60
# Queues of one worker, one command or one beat; they come and go with it.
_PASSING = ("celeryev.", "amq.gen-", "saltern.beat")


def definitions():
    """
    The virtual hosts, users and rights that the broker should have: one of each for each site
    that has queues, and the user ``operator`` for the management page.

    Passwords are hashed as RabbitMQ hashes them. The salt of a hash is made from the password, so
    that the same pillar gives the same file.

    Returns a dictionary in the form that ``rabbitmqctl import_definitions`` reads. Raises
    ``CommandExecutionError`` if a secret is missing.

    CLI Example:

    .. code-block:: bash

        salt 'worker1' broker.definitions
    """
    sites = [s for s in __salt__["sites.list"]() if __salt__["sites.get"](s)["queues"]]
    limit = __salt__["settings.get"]("rabbitmq")["delivery_limit"]
    operator = _user("operator", __salt__["sites.secret"]("rabbitmq", "operator"), "monitoring")
    return {
        "users": [operator]
        + [_user(site, __salt__["sites.broker_password"](site), "") for site in sites],
        "vhosts": [{"name": site} for site in sites],
        "permissions": [
            {"user": user, "vhost": site, "configure": own, "write": own, "read": ".*"}
            for site in sites
            for user, own in ((site, ".*"), ("operator", "^$"))
        ],
        "policies": [
            {
                "vhost": site,
                "name": "poison",
                "pattern": ".*",
                "apply-to": "queues",
                "priority": 0,
                "definition": {"delivery-limit": limit},
            }
            for site in sites
        ],
    }


def stats():
    """
    How the broker fares.

    Returns a dictionary: ``memory`` and ``memory_limit`` in bytes, ``disk_free`` and
    ``disk_limit`` in bytes, ``alarms``, ``connections``, ``nodes`` that are up, ``partitions``,
    and ``queues``: by site and queue ``waiting`` and ``running`` tasks and ``workers``. The
    command's exit code is 1 while an alarm or a partition stands. Raises
    ``CommandExecutionError`` if it doesn't answer.

    CLI Example:

    .. code-block:: bash

        salt 'worker1' broker.stats
    """
    told = _ask("rabbitmq-diagnostics", "status")
    cluster = _ask("rabbitmq-diagnostics", "cluster_status")
    found = {
        "memory": told["memory"]["total"]["rss"],
        "memory_limit": told["vm_memory_high_watermark_limit"],
        "disk_free": told["disk_free"],
        "disk_limit": told["disk_free_limit"],
        "alarms": [str(alarm) for alarm in told["alarms"]],
        "connections": told["totals"]["connection_count"],
        "nodes": cluster["running_nodes"],
        "partitions": cluster["partitions"],
        "queues": {site: _queues(site) for site in _vhosts()},
    }
    if found["alarms"] or found["partitions"]:
        __context__["retcode"] = 1
    return found


def cluster():
    """
    The cluster that the brokers of the inventory should be, and what this broker is part of.

    Returns a dictionary: ``wanted``, the nodes of the inventory, ``known``, the nodes that this
    broker counts as members, and ``running``, those of them that are up. Raises
    ``CommandExecutionError`` if this broker doesn't answer.

    CLI Example:

    .. code-block:: bash

        salt 'worker1' broker.cluster
    """
    told = _ask("rabbitmq-diagnostics", "cluster_status")
    return {
        "wanted": [_node(peer["id"]) for peer in __salt__["inventory.peers"]("broker")],
        "known": sorted(told["disk_nodes"]),
        "running": sorted(told["running_nodes"]),
    }


def to_join(found=None):
    """
    The broker whose cluster this one should join, if it is alone: one that is in a cluster, else
    one that sites' queues live on, else the first by name. Of two with queues, or two without, the
    later joins the earlier; one without queues never makes one with queues start afresh.

    found
        What :func:`cluster` returned, if it was asked already.

    Returns a node's name, or None if there is nothing to do or no other broker is up. Raises
    ``CommandExecutionError`` if this broker doesn't answer.

    CLI Example:

    .. code-block:: bash

        salt 'worker2' broker.to_join
    """
    found, mine = found or cluster(), _node(__opts__["id"])
    if set(found["known"]) != {mine}:
        return None
    others = {node: _members(node) for node in found["wanted"] if node != mine}
    up = sorted(node for node, members in others.items() if members)
    clusters = [node for node in up if len(others[node]) > 1]
    if clusters:
        return clusters[0]
    in_use = {node for node in [mine, *up] if _has_queues(node)}
    first = in_use or {mine, *up}
    joined = [node for node in up if node in first and (node < mine or mine not in first)]
    return joined[0] if joined else None


def join(node):
    """
    Let this broker join another one's cluster. It forgets all it has, so it must hold no task.

    node
        A node of that cluster, as ``rabbit@worker1``.

    Returns what :func:`cluster` returns. Raises ``CommandExecutionError`` if a task waits here or
    the other one refuses.

    CLI Example:

    .. code-block:: bash

        salt 'worker2' broker.join rabbit@worker1
    """
    for site in _vhosts():
        _must_be_empty(site, f"joining {node}")
    forget(_node(__opts__["id"]), node)
    _tell("rabbitmqctl", "stop_app")
    try:
        _tell("rabbitmqctl", "reset")
        _join(node)
    finally:
        _tell("rabbitmqctl", "start_app")
    return cluster()


def _join(node):
    """A cluster takes one after the other: who comes while another joins waits his turn."""
    deadline = time.monotonic() + _TURN
    while True:
        try:
            return _tell("rabbitmqctl", "join_cluster", node)
        except CommandExecutionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(2)


def forget(node, at=None):
    """
    Let the cluster forget a broker that is down for good or was emptied. One that is up is kept.

    node
        Who is to be forgotten, as ``rabbit@worker2``.
    at
        A node of the cluster that is up; this host's own if not given.

    Returns true if it was a member until now. Raises ``CommandExecutionError`` if the cluster
    refuses.

    CLI Example:

    .. code-block:: bash

        salt 'worker1' broker.forget rabbit@worker2
    """
    at = at or _node(__opts__["id"])
    if node not in _members(at):
        return False
    _tell("rabbitmqctl", "--node", at, "forget_cluster_node", node)
    return True


def leave():
    """
    Take this broker out of its cluster and stop it. The others keep their copies of quorum queues.
    Its role has to be taken away in the inventory too.

    Returns what the command of the last step said. Raises ``CommandExecutionError`` if it is the
    only one, or a classic queue that lives here holds tasks.

    CLI Example:

    .. code-block:: bash

        salt 'worker2' broker.leave
    """
    mine = _node(__opts__["id"])
    if cluster()["running"] == [mine]:
        raise CommandExecutionError(
            "This is the only broker that is up: there's none to take over."
        )
    for site in _vhosts():
        here = [q["name"] for q in _listed(site, "pid") if q["pid"].startswith(f"<{mine}.")]
        held = [name for name, told in _queues(site).items() if name in here and _holds(told)]
        if held:
            raise CommandExecutionError(
                f"{site}'s queue {held[0]} lives on this broker alone and holds tasks: "
                "let the workers finish them first."
            )
    _tell("rabbitmq-queues", "shrink", mine)
    _tell("rabbitmqctl", "stop_app")
    _tell("rabbitmqctl", "reset")
    return __salt__["service.disable"]("rabbitmq-server") and __salt__["service.stop"](
        "rabbitmq-server"
    )


def renew(site):
    """
    Make a site's virtual host anew, without queues: those that the site makes then are of the
    ``queue_type`` of today. While it is made, nothing can be queued.

    site
        The site's name.

    Returns true. Raises ``CommandExecutionError`` if there is no such site here, or a task waits
    or runs.

    CLI Example:

    .. code-block:: bash

        salt 'worker1' broker.renew newsroom
    """
    if site not in _vhosts():
        raise CommandExecutionError(
            f"The broker knows no site {site!r}. Sites: {', '.join(_vhosts()) or 'none'}."
        )
    _must_be_empty(site, "making its queues anew")
    _tell("rabbitmqctl", "delete_vhost", site)
    _tell("rabbitmqctl", "import_definitions", "/etc/rabbitmq/definitions.json")
    return True


def _must_be_empty(site, what):
    held = [name for name, told in _queues(site).items() if _holds(told)]
    if held:
        raise CommandExecutionError(
            f"{site}'s queue {held[0]} holds tasks, which {what} would lose: let the workers "
            "finish them first."
        )


def _holds(told):
    return told["waiting"] or told["running"]


def is_empty():
    """
    Whether the broker of this host was never started, or all that it had was removed.

    Returns true or false.

    CLI Example:

    .. code-block:: bash

        salt 'worker2' broker.is_empty
    """
    return not (_DATA / _node(__opts__["id"])).exists()


def members():
    """
    The other brokers that are up and count this one as a member of their cluster.

    Returns a list of nodes.

    CLI Example:

    .. code-block:: bash

        salt 'worker2' broker.members
    """
    mine = _node(__opts__["id"])
    others = [_node(peer["id"]) for peer in __salt__["inventory.peers"]("broker")]
    return [node for node in others if node != mine and mine in _members(node)]


def spread():
    """
    Give every quorum queue a copy on this broker, where it has none yet.

    Returns the number of queues that got one. Raises ``CommandExecutionError`` if a queue can't
    get one.

    CLI Example:

    .. code-block:: bash

        salt 'worker2' broker.spread
    """
    lacking = _without_copy_here()
    for site, name in lacking:
        _tell("rabbitmq-queues", "add_member", "--vhost", site, name, _node(__opts__["id"]))
    return len(lacking)


def _without_copy_here():
    mine = _node(__opts__["id"])
    return [
        (site, queue["name"])
        for site in _vhosts()
        for queue in _listed(site, "type", "members")
        if queue["type"] == "quorum" and mine not in queue["members"]
    ]


def _node(host):
    return f"rabbit@{host}"


def _members(node):
    """The members of the cluster that another broker is in; none if it doesn't answer."""
    try:
        return _ask("rabbitmq-diagnostics", "--node", node, "cluster_status")["disk_nodes"]
    except CommandExecutionError:
        return []


def _has_queues(node):
    """Whether a site's queue lives on another broker, or on this one."""
    for site in __salt__["sites.list"]():
        try:
            if _ask("rabbitmqctl", "--node", node, "list_queues", "-p", site, "name"):
                return True
        except CommandExecutionError:
            continue  # it has no such virtual host yet
    return False


def _vhosts():
    return sorted(v["name"] for v in _ask("rabbitmqctl", "list_vhosts") if v["name"] != "/")


def _listed(site, *columns):
    return _ask("rabbitmqctl", "list_queues", "-p", site, "name", *columns)


def _queues(site):
    columns = ("messages_ready", "messages_unacknowledged", "consumers")
    return {
        queue["name"]: {
            "waiting": queue["messages_ready"],
            "running": queue["messages_unacknowledged"],
            "workers": queue["consumers"],
        }
        for queue in sorted(_listed(site, *columns), key=lambda queue: queue["name"])
        if not queue["name"].startswith(_PASSING) and not queue["name"].endswith(".pidbox")
    }


def _ask(*command):
    """What one of RabbitMQ's tools says, as JSON."""
    program, *arguments = command
    return json.loads(_tell(program, "--quiet", "--formatter", "json", *arguments))


def _tell(*command):
    result = __salt__["cmd.run_all"]([*command], python_shell=False, ignore_retcode=True)
    if result["retcode"]:
        raise CommandExecutionError(
            f"RabbitMQ doesn't answer: {(result['stderr'] or result['stdout'])[-500:]}"
        )
    return result["stdout"]


def _user(name, password, tags):
    salt = hashlib.sha256(f"{name}:{password}".encode()).digest()[:4]
    digest = hashlib.sha256(salt + password.encode()).digest()
    return {
        "name": name,
        "password_hash": base64.b64encode(salt + digest).decode(),
        "hashing_algorithm": "rabbit_password_hashing_sha256",
        "tags": tags,
    }
