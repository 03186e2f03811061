"""
The brokers of the inventory are one cluster.
"""

from salt.exceptions import CommandExecutionError


def unknown(name):
    """
    Where this host's broker has nothing on its disk, the others don't count it as a member: a
    host that was lost and set up again may join like a new one. To be required before its start.

    name
        The state's ID; it has no other meaning.

    .. code-block:: yaml

        rabbitmq/unknown:
          broker.unknown: []
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": "Nobody has to forget it."}
    if not __salt__["broker.is_empty"]():
        return ret
    members = __salt__["broker.members"]()
    if not members:
        return ret
    ret["changes"] = {"forgotten by": members}
    if __opts__["test"]:
        return {**ret, "result": None, "comment": "The others would forget its former self."}
    # One tells all others.
    __salt__["broker.forget"](f"rabbit@{__opts__['id']}", members[0])
    ret["comment"] = "The others forgot its former self."
    return ret


def clustered(name):
    """
    This broker is in one cluster with the others of the inventory that are up, and each quorum
    queue has a copy on it. Members that the inventory no longer names are forgotten once they are
    down.

    name
        The state's ID; it has no other meaning.

    .. code-block:: yaml

        rabbitmq/cluster:
          broker.clustered: []
    """
    ret = {
        "name": name,
        "result": True,
        "changes": {},
        "comment": "The cluster is as it should be.",
    }
    try:
        found = __salt__["broker.cluster"]()
    except CommandExecutionError as error:
        if __opts__["test"]:
            return {**ret, "result": None, "comment": "It would be looked at once RabbitMQ runs."}
        return {**ret, "result": False, "comment": str(error)}
    try:
        return _clustered(ret, found)
    except CommandExecutionError as error:
        return {**ret, "result": False, "comment": str(error)}


def _clustered(ret, found):
    node = __salt__["broker.to_join"](found)
    gone = sorted(set(found["known"]) - set(found["wanted"]) - set(found["running"]))
    if node:
        ret["changes"]["joined"] = node
    if gone:
        ret["changes"]["forgotten"] = gone
    if __opts__["test"]:
        if ret["changes"]:
            ret.update(result=None, comment="The cluster would be changed.")
        return ret
    if node:
        __salt__["broker.join"](node)
    for one in gone:
        __salt__["broker.forget"](one)
    copies = __salt__["broker.spread"]()
    if copies:
        ret["changes"]["quorum queues that got a copy here"] = copies
    if ret["changes"]:
        ret["comment"] = "The cluster was changed."
    return ret
