"""
A PostgreSQL cluster, its place in the farm, and what lies in it.

Nothing here makes an empty cluster beside a full one, and nothing makes a second host take writes:
where the servers and the pillar disagree, the state fails and says what to type.
"""

import time

from salt.exceptions import CommandExecutionError


def primary(name):
    """
    This host has a cluster that takes writes.

    name
        Anything.

    It is created if no database host of the farm has one. The state fails, and changes nothing, if
    there is a cluster of another version or name, if another host takes writes, or if this host's
    data is gone while a replica still has it.

    .. code-block:: yaml

        postgres/cluster:
          database.primary
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": "The cluster exists."}
    found = __salt__["database.status"]()
    refusal = _other_version(found) or _other_primary(found)
    if refusal:
        return ret | {"result": False, "comment": refusal}
    if found["state"] != "absent":
        return ret
    changes = {"cluster": {"old": "absent", "new": "created"}}
    if __opts__["test"]:
        return ret | {"result": None, "changes": changes, "comment": "It would be created."}
    __salt__["database.create"]()
    return ret | {"changes": changes, "comment": "An empty cluster was created."}


def replica(name, wait=300):
    """
    This host has a copy of the primary's cluster, and a slot there.

    name
        Anything.
    wait
        Seconds to wait for a primary: in a farm's first run it is set up at the same time.

    A host that was fenced, because another one was promoted, becomes a replica again. The state
    fails if this host takes writes itself, or there is a cluster of another version.

    .. code-block:: yaml

        postgres/cluster:
          database.replica
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": "The replica exists."}
    found = __salt__["database.status"]()
    refusal = _other_version(found) or _takes_writes(found)
    if refusal:
        return ret | {"result": False, "comment": refusal}
    act = _missing_step(found)
    if act and __opts__["test"]:
        changes = {"cluster": {"old": found["state"], "new": "replica"}}
        return ret | {"result": None, "changes": changes, "comment": f"Would {act}."}
    try:
        if act:
            _source(wait)
            done = __salt__[f"database.{act}"]()
            ret["changes"] = {"cluster": {"old": found["state"], "new": "replica"}}
            return ret | {"comment": f"The host {done['result']}."}
        silent = found["state"] == "replica" and not found["streaming"] and not __opts__["test"]
        if silent and __salt__["database.reserve_slot"](_source(5)["address"]):
            ret["changes"] = {"slot": {"old": "absent", "new": __salt__["database.slot"]()}}
    except CommandExecutionError as error:
        return ret | {"result": False, "comment": str(error)}
    return ret


def settled(name):
    """
    Says which settings wait for a restart of the server, until it is restarted. Has commits wait
    for a replica again if a promotion suspended that and a replica is back.

    name
        Anything.

    .. code-block:: yaml

        postgres/settled:
          database.settled
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": "No restart is pending."}
    if __salt__["database.wait_for_replicas"]():
        ret["changes"] = {"commits": {"old": "wait for nobody", "new": "wait for a replica"}}
        ret["result"] = None if __opts__["test"] else True
    pending = __salt__["database.pending"]()
    if pending:
        ret["comment"] = f"A restart is pending for {', '.join(pending)}."
        ret["warnings"] = [
            f"PostgreSQL uses the old value of {', '.join(pending)} until it is restarted. "
            f"When it suits: salt {__opts__['id']} database.restart"
        ]
    return ret


def user(name, secret, replication=False, createdb=False, grants=None):
    """
    A role that may log in, with this password, and nothing beyond.

    name
        Its name.
    secret
        Where its password stands below ``secrets:`` in the pillar, step by step: the password
        itself would lie in the minion's cache of states. It reaches the server as a SCRAM
        verifier, over a socket.
    replication
        Whether it may copy the whole cluster.
    createdb
        Whether it may create databases.
    grants
        Names of roles that it is a member of.

    .. code-block:: yaml

        postgres/newsroom/user:
          database.user:
            - name: newsroom
            - secret: [postgres, users, newsroom]
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": f"{name} is as it should be."}
    password = __salt__["sites.secret"](*secret)
    changes, commands = _user_changes(
        name, password, {"REPLICATION": replication, "CREATEDB": createdb}, grants or []
    )
    if not changes:
        return ret
    if __opts__["test"]:
        return ret | {"result": None, "changes": changes, "comment": f"{name} would be changed."}
    for command in commands:
        __salt__["database.execute"](command)
    return ret | {"changes": changes, "comment": f"{name} was changed."}


def granted(name, functions):
    """
    A role may execute functions of the database ``postgres``.

    name
        The role.
    functions
        Their signatures, as ``pg_ls_dir(text, boolean, boolean)``.

    .. code-block:: yaml

        postgres/rewind:
          database.granted:
            - name: replication
            - functions: [pg_read_binary_file(text)]
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": f"{name} may execute them."}
    text, sql = __salt__["database.literal"], __salt__["database.identifier"]
    known = __salt__["database.query"](f"SELECT FROM pg_roles WHERE rolname = {text(name)}")
    missing = [
        one
        for one in functions
        if not known
        or not __salt__["database.query"](
            f"SELECT has_function_privilege({text(name)}, {text(one)}, 'execute') AS may"
        )[0]["may"]
    ]
    if not missing:
        return ret
    ret |= {"changes": {"functions": missing}, "comment": f"{name} gets {len(missing)} more."}
    if __opts__["test"]:
        return ret | {"result": None}
    for one in missing:
        __salt__["database.execute"](f"GRANT EXECUTE ON FUNCTION {one} TO {sql(name)}")
    return ret


def present(name, owner, extensions=None, schemas=None, private=True):
    """
    A database, with extensions and schemas.

    name
        Its name.
    owner
        The role that owns it and its schemas.
    extensions
        Names of extensions that it has; others stay.
    schemas
        Names of schemas that it has beside ``public``; others stay.
    private
        Whether only its owner may connect to it.

    .. code-block:: yaml

        postgres/newsroom/database:
          database.present:
            - name: newsroom
            - owner: newsroom
            - extensions: [pg_trgm]
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": f"{name} is as it should be."}
    sql = __salt__["database.identifier"]
    changes = _database_changes(name, owner, private)
    if "database" in changes and __opts__["test"]:
        return ret | {"result": None, "changes": changes, "comment": f"{name} would be created."}
    if not __opts__["test"]:
        if "database" in changes:
            __salt__["database.execute"](
                f"CREATE DATABASE {sql(name)} OWNER {sql(owner)} ENCODING 'UTF8' TEMPLATE template0"
            )
        if "owner" in changes:
            __salt__["database.execute"](f"ALTER DATABASE {sql(name)} OWNER TO {sql(owner)}")
        if "access" in changes:
            __salt__["database.execute"](f"REVOKE ALL ON DATABASE {sql(name)} FROM PUBLIC")
    changes |= _inside(name, owner, extensions or [], schemas or [])
    if changes:
        result = None if __opts__["test"] else True
        return ret | {"result": result, "changes": changes, "comment": f"{name}: changes."}
    return ret


def _other_version(found):
    """Why nothing may be created here: there is a cluster of another version or name."""
    others = __salt__["database.others"]()
    if found["state"] != "absent" or not others:
        return None
    here = __salt__["database.cluster"]()
    version, name = others[0].split("/")
    move = f"pg_upgradecluster {version} {name}"
    if version == str(here["version"]):
        move = f"pg_renamecluster {version} {name} {here['name']}"
    return (
        f"The cluster {here['version']}/{here['name']} of PostgreSQL is asked for, but this host's "
        f"data is in {others[0]}. An empty cluster isn't put beside it. Either set "
        f"postgres.version: {version} and postgres.cluster: {name}, or move the data first: {move}"
    )


def _other_primary(found):
    """Why this host can't be the primary that the pillar says it is."""
    me = __opts__["id"]
    if found.get("fenced"):
        return (
            f"{me} is fenced ({found['fenced']}), but the pillar still names it as the primary. "
            "Set postgres.primary to that host in the overrides."
        )
    if found["state"] == "primary":
        return None
    asked = [peer for peer in __salt__["database.peers"]() if peer["answers"]]
    writers = [peer["id"] for peer in asked if not peer["in_recovery"]]
    if writers:
        return (
            f"{writers[0]} takes the writes, but the pillar names {me}. If that is right now, "
            f"set postgres.primary: {writers[0]} in the overrides; else move the writes with "
            f"salt-run database.promote {me}"
        )
    if found["state"] == "replica":
        return (
            f"{me} is a replica, but the pillar names it as the primary. "
            f"Promote it: salt-run database.promote {me}"
        )
    if found["state"] == "absent" and asked:
        return (
            f"{me} has no data, but its replica {asked[0]['id']} has. An empty primary isn't put "
            f"beside it. Promote the replica: salt-run database.promote {asked[0]['id']}"
        )
    return None


def _takes_writes(found):
    """Why this host can't become the replica that the pillar says it is."""
    if found["state"] != "primary":
        return None
    me = __opts__["id"]
    return (
        f"{me} takes writes, but the pillar doesn't name it as the primary. If it should, set "
        f"postgres.primary: {me} in the overrides; if another host does, make this one its "
        f"replica and lose what only it has: salt-run database.rejoin {me}"
    )


def _missing_step(found):
    """The function that makes a replica of this host, or None where it is one."""
    if found["state"] == "absent":
        return "clone"
    return "rejoin" if found.get("fenced") else None


def _source(wait):
    deadline = time.monotonic() + wait
    while True:
        try:
            return __salt__["database.source"]()
        except CommandExecutionError:
            if time.monotonic() > deadline:
                raise
        time.sleep(2)


def _user_changes(name, password, rights, grants):
    sql, text = __salt__["database.identifier"], __salt__["database.literal"]
    found = __salt__["database.query"](
        "SELECT rolpassword, rolreplication, rolcreatedb, rolcanlogin,"
        " rolsuper OR rolcreaterole AS more, ARRAY(SELECT g.rolname::text FROM pg_auth_members m"
        " JOIN pg_roles g ON g.oid = m.roleid WHERE m.member = a.oid) AS grants"
        f" FROM pg_authid a WHERE rolname = {text(name)}"
    )
    changes, commands = {}, []
    if not found:
        changes["user"] = {"old": "absent", "new": "present"}
        commands.append(f"CREATE ROLE {sql(name)}")
    facts = found[0] if found else {}
    differs = [r for r, wanted in rights.items() if facts.get(f"rol{r.lower()}", False) != wanted]
    if differs or facts.get("more") or not facts.get("rolcanlogin"):
        words = [right if wanted else f"NO{right}" for right, wanted in rights.items()]
        words = " ".join(["NOSUPERUSER NOCREATEROLE LOGIN", *words])
        changes["rights"] = {"old": "others", "new": words.lower()}
        commands.append(f"ALTER ROLE {sql(name)} {words}")
    if not __salt__["database.matches"](password, facts.get("rolpassword")):
        changes["password"] = "changed"
        secret = text(__salt__["database.verifier"](password))
        commands.append(f"ALTER ROLE {sql(name)} PASSWORD {secret}")
    for grant in sorted(set(grants) - set(facts.get("grants") or [])):
        changes.setdefault("grants", []).append(grant)
        commands.append(f"GRANT {sql(grant)} TO {sql(name)}")
    return changes, commands


def _database_changes(name, owner, private):
    text = __salt__["database.literal"]
    found = __salt__["database.query"](
        "SELECT pg_get_userbyid(datdba) AS owner, coalesce((SELECT bool_or(grantee = 0)"
        " FROM aclexplode(coalesce(datacl, acldefault('d', datdba)))), false) AS public"
        f" FROM pg_database WHERE datname = {text(name)}"
    )
    changes = {}
    if not found:
        changes["database"] = {"old": "absent", "new": "present"}
    elif found[0]["owner"] != owner:
        changes["owner"] = {"old": found[0]["owner"], "new": owner}
    if private and (not found or found[0]["public"]):
        changes["access"] = {"old": "everybody", "new": "its owner"}
    return changes


def _inside(name, owner, extensions, schemas):
    """Bring extensions and schemas into a database; the changes."""
    if not extensions and not schemas:
        return {}
    sql = __salt__["database.identifier"]
    found = __salt__["database.query"](
        "SELECT ARRAY(SELECT extname::text FROM pg_extension) AS extensions,"
        " ARRAY(SELECT nspname::text FROM pg_namespace) AS schemas",
        name,
    )[0]
    changes = {}
    for kind, wanted, command, ending in (
        ("extensions", extensions, "CREATE EXTENSION", ""),
        ("schemas", schemas, "CREATE SCHEMA", f" AUTHORIZATION {sql(owner)}"),
    ):
        missing = sorted(set(wanted) - set(found[kind]))
        for one in missing:
            if not __opts__["test"]:
                __salt__["database.execute"](f"{command} {sql(one)}{ending}", name)
        if missing:
            changes[kind] = missing
    return changes
