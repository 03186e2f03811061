"""
RabbitMQ, the broker: who may use it, and how its queues fare.
"""

import base64
import hashlib
import json

from salt.exceptions import CommandExecutionError

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


def _vhosts():
    return sorted(v["name"] for v in _ask("rabbitmqctl", "list_vhosts") if v["name"] != "/")


def _queues(site):
    columns = ("name", "messages_ready", "messages_unacknowledged", "consumers")
    return {
        queue["name"]: {
            "waiting": queue["messages_ready"],
            "running": queue["messages_unacknowledged"],
            "workers": queue["consumers"],
        }
        for queue in sorted(
            _ask("rabbitmqctl", "list_queues", "-p", site, *columns), key=lambda q: q["name"]
        )
        if not queue["name"].startswith(_PASSING) and not queue["name"].endswith(".pidbox")
    }


def _ask(*command):
    program, *arguments = command
    result = __salt__["cmd.run_all"](
        [program, "--quiet", "--formatter", "json", *arguments],
        python_shell=False,
        ignore_retcode=True,
    )
    if result["retcode"]:
        raise CommandExecutionError(
            f"RabbitMQ doesn't answer: {(result['stderr'] or result['stdout'])[-500:]}"
        )
    return json.loads(result["stdout"])


def _user(name, password, tags):
    salt = hashlib.sha256(f"{name}:{password}".encode()).digest()[:4]
    digest = hashlib.sha256(salt + password.encode()).digest()
    return {
        "name": name,
        "password_hash": base64.b64encode(salt + digest).decode(),
        "hashing_algorithm": "rabbit_password_hashing_sha256",
        "tags": tags,
    }
