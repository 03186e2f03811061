"""
A MariaDB server's place in the farm, its settings, and what lies in it.

Nothing here overwrites data: where the servers and the pillar disagree, the state fails and says
what to type.
"""

import time

from salt.exceptions import CommandExecutionError


def free(name):
    """
    This host's server may start: it wasn't fenced for another one to take over.

    name
        Anything.

    .. code-block:: yaml

        mariadb/free:
          mariadb.free
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": "The server may start."}
    fenced = __salt__["mariadb.status"]().get("fenced")
    if not fenced:
        return ret
    me = __opts__["id"]
    comment = f"{me} is fenced ({fenced})."
    if __salt__["inventory.primary"]("mariadb") == __salt__["inventory.address"]():
        comment += " The pillar names it as the primary: set mariadb.primary in the overrides."
    else:
        comment += f" Make it a replica: salt {me} mariadb.clone replace=True"
    return ret | {"result": False, "comment": comment}


def primary(name):
    """
    This host's server takes writes.

    name
        Anything.

    The state fails, and changes nothing, if it follows another one, if another host takes writes,
    or if it is empty while another host has data.

    .. code-block:: yaml

        mariadb/place:
          mariadb.primary
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": "The server takes writes."}
    found = __salt__["mariadb.status"]()
    refusal = _refusal(found)
    if refusal:
        return ret | {"result": False, "comment": refusal}
    return ret


def replica(name, wait=300):
    """
    This host's server has a copy of the primary's data, and follows it.

    name
        Anything.
    wait
        Seconds to wait for a primary: in a farm's first run it is set up at the same time.

    An empty server is replaced by a copy. The state fails if the server has data of its own.

    .. code-block:: yaml

        mariadb/place:
          mariadb.replica
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": "The replica follows."}
    found = __salt__["mariadb.status"]()
    if found["state"] == "replica":
        return _follows(ret, found)
    if found["state"] != "empty":
        me = __opts__["id"]
        comment = found.get("reason") or (
            f"{me} has data of its own, but the pillar names another host as the primary. If {me} "
            f"should take the writes, set mariadb.primary: {me} in the overrides; if not, make it "
            f"a replica and lose what only it has: salt {me} mariadb.clone replace=True"
        )
        return ret | {"result": False, "comment": comment}
    ret["changes"] = {"server": {"old": "empty", "new": "replica"}}
    if __opts__["test"]:
        return ret | {"result": None, "comment": "It would be copied from the primary."}
    try:
        return ret | {"comment": f"The host was {_cloned(wait)}."}
    except CommandExecutionError as error:
        return ret | {"result": False, "changes": {}, "comment": str(error)}


def settled(name):
    """
    The running server has the settings of its configuration file. Those that it only takes at its
    start are named, each time, until it is restarted; nothing here restarts it.

    name
        Anything.

    .. code-block:: yaml

        mariadb/settled:
          mariadb.settled
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": "No restart is pending."}
    changes = __salt__["mariadb.apply_settings"](test=__opts__["test"])
    if changes:
        ret |= {"changes": changes, "result": None if __opts__["test"] else True}
    pending = __salt__["mariadb.pending"]()
    if pending:
        ret["comment"] = f"A restart is pending for {', '.join(pending)}."
        ret["warnings"] = [
            f"MariaDB uses the old value of {', '.join(pending)} until it is restarted. "
            f"When it suits: salt {__opts__['id']} mariadb.restart"
        ]
    return ret


def user(name, secret, hosts, databases=None, endings=None, rights=None):
    """
    A user who may log in from these addresses only, over TLS, and do only this.

    name
        Its name.
    secret
        Where its password stands below ``secrets:`` in the pillar, step by step. It reaches the
        server as a hash, over a socket.
    hosts
        Addresses that it comes from. It can't log in from others any more.
    databases
        Databases in which it may do everything.
    endings
        Also in databases whose names are one of these databases', one of these endings and more.
    rights
        What it may do everywhere, as ``REPLICATION SLAVE``.

    .. code-block:: yaml

        mariadb/newsroom/user:
          mariadb.user:
            - name: newsroom
            - secret: [mariadb, users, newsroom]
            - hosts: [198.18.0.31]
            - databases: [newsroom]
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": f"{name} is as it should be."}
    privileges = _privileges(databases or [], endings or [], rights or [])
    password = __salt__["sites.secret"](*secret)
    changes, commands = _user_changes(name, password, hosts, privileges)
    if not changes:
        return ret
    if __opts__["test"]:
        return ret | {"result": None, "changes": changes, "comment": f"{name} would be changed."}
    __salt__["mariadb.execute"](";\n".join(commands))
    return ret | {"changes": changes, "comment": f"{name} was changed."}


def database(name):
    """
    A database, for all characters (utf8mb4).

    name
        Its name.

    .. code-block:: yaml

        mariadb/newsroom/database:
          mariadb.database:
            - name: newsroom
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": f"{name} exists."}
    text, sql = __salt__["mariadb.literal"], __salt__["mariadb.identifier"]
    known = "SELECT schema_name AS name FROM information_schema.schemata WHERE schema_name = "
    if __salt__["mariadb.query"](known + text(name)):
        return ret
    ret["changes"] = {"database": {"old": "absent", "new": "present"}}
    if __opts__["test"]:
        return ret | {"result": None, "comment": f"{name} would be created."}
    __salt__["mariadb.execute"](f"CREATE DATABASE {sql(name)} CHARACTER SET utf8mb4")
    return ret | {"comment": f"{name} was created."}


def _refusal(found):
    """Why this host can't be the primary that the pillar says it is."""
    me = __opts__["id"]
    if found["state"] == "stopped":
        return found["reason"]
    if found["state"] == "replica":
        return (
            f"{me} follows {found['source']}, but the pillar names it as the primary. Stop the "
            "other one for good with mariadb.fence, then promote this one: salt "
            f"{me} mariadb.promote gtid=…"
        )
    asked = [peer for peer in __salt__["mariadb.peers"]() if peer["answers"]]
    writers = [peer["id"] for peer in asked if peer["writes"]]
    if writers:
        return (
            f"{writers[0]} takes the writes, but the pillar names {me}. If that is right now, set "
            f"mariadb.primary: {writers[0]} in the overrides."
        )
    full = [peer["id"] for peer in asked if peer["gtid"]]
    if found["state"] == "empty" and full:
        return (
            f"{me} has no data, but its replica {full[0]} has. An empty primary isn't put beside "
            f"it. Set mariadb.primary: {full[0]}, and promote it: salt {full[0]} mariadb.promote"
        )
    return None


def _follows(ret, found):
    """A replica that follows the one that takes writes."""
    wanted = __salt__["inventory.primary"]("mariadb")
    if found["source"] != wanted:
        ret["changes"] = {"source": {"old": found["source"], "new": wanted}}
        if __opts__["test"]:
            return ret | {"result": None}
        __salt__["mariadb.follow"](wanted)
        return ret
    if not found["streaming"]:
        ret["warnings"] = [
            f"The replica doesn't receive: {found.get('error') or 'it is stopped'}. If it can't "
            f"catch up: salt {__opts__['id']} mariadb.clone replace=True"
        ]
    return ret


def _cloned(wait):
    """Copy the primary's data as soon as there is one; its door opens at the end of its run."""
    _patiently("mariadb.source", wait)
    return _patiently("mariadb.clone", 60)["result"]


def _patiently(function, wait):
    """Call a function until it succeeds, for some seconds."""
    deadline = time.monotonic() + wait
    while True:
        try:
            return __salt__[function]()
        except CommandExecutionError:
            if time.monotonic() > deadline:
                raise
        time.sleep(2)


def _privileges(databases, endings, rights):
    """What a user may do: the level, as SQL writes it -> a list of privileges."""
    pattern = __salt__["mariadb.pattern"]
    levels = [pattern(name) for name in databases]
    levels += [pattern(name + end)[:-1] + "%`" for name in databases for end in endings]
    found = {f"{level}.*": ["ALL PRIVILEGES"] for level in levels}
    return found | ({"*.*": rights} if rights else {})


def _user_changes(name, password, hosts, privileges):
    text = __salt__["mariadb.literal"]
    rows = __salt__["mariadb.query"](
        "SELECT host, json_value(priv, '$.authentication_string') AS hash,"
        f" json_value(priv, '$.ssl_type') AS tls FROM mysql.global_priv WHERE user = {text(name)}"
    )
    known = {row["host"]: row for row in rows}
    stored = __salt__["mariadb.verifier"](password)
    changes, commands = {}, []
    for host in hosts:
        account, before = f"{text(name)}@{text(host)}", known.get(host)
        wanted = _grants(account, privileges)
        if before is None or before["hash"] != stored or before["tls"] != "1":
            changes[host] = "password changed" if before else {"old": "absent", "new": "present"}
            by = f"IDENTIFIED BY PASSWORD {text(stored)} REQUIRE SSL"
            commands += [f"CREATE OR REPLACE USER {account} {by}", *wanted]
        elif _granted(name, host) != wanted:
            changes[host] = "rights changed"
            commands += [f"REVOKE ALL PRIVILEGES, GRANT OPTION FROM {account}", *wanted]
    for host in sorted(set(known) - set(hosts)):
        changes[host] = {"old": "present", "new": "absent"}
        commands.append(f"DROP USER {text(name)}@{text(host)}")
    return changes, commands


def _grants(account, privileges):
    """The statements that give an account its rights, as the server shows them."""
    return sorted(
        f"GRANT {', '.join(sorted(words))} ON {level} TO {account}"
        for level, words in privileges.items()
    )


def _granted(name, host):
    """What an account may do, in the form of :func:`_grants`."""
    text, sql = __salt__["mariadb.literal"], __salt__["mariadb.identifier"]
    account, shown = f"{text(name)}@{text(host)}", f" TO {sql(name)}@{sql(host)}"
    found = []
    for row in __salt__["mariadb.query"](f"SHOW GRANTS FOR {account}"):
        words, _on, rest = next(iter(row.values())).removeprefix("GRANT ").partition(" ON ")
        level = rest.partition(shown)[0]
        if words != "USAGE":
            found.append(f"GRANT {', '.join(sorted(words.split(', ')))} ON {level} TO {account}")
    return sorted(found)
