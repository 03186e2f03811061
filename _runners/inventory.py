"""
The inventories of all environments whose hosts this master knows.
"""

import fnmatch

import salt.key
import salt.pillar


def environments():
    """
    What the pillar says of each environment that has a host with an accepted key.

    Returns a dictionary from an environment's name to ``hosts`` and ``sites``, as its hosts are
    told them. No secret is among them.

    CLI Example:

    .. code-block:: bash

        salt-run inventory.environments
    """
    seen, found = set(), {}
    for minion in accepted():
        if any(fnmatch.fnmatch(minion, entry) for entry in seen):
            continue
        pillar = salt.pillar.get_pillar(__opts__, {}, minion, "base").compile_pillar()
        seen |= set(pillar.get("hosts") or {}) | {minion}
        if pillar.get("environment"):
            told = {name: pillar.get(name) or {} for name in ("hosts", "sites")}
            found[pillar["environment"]] = told
    return found


def hosts(role, environment=None):
    """
    The hosts with a role, of those whose key is accepted.

    role
        The role.
    environment
        Only this one; all of them if not given.

    Returns a sorted list of minion ids.

    CLI Example:

    .. code-block:: bash

        salt-run inventory.hosts log
    """
    keys, found = accepted(), set()
    for name, told in environments().items():
        if environment not in (None, name):
            continue
        for entry, facts in told["hosts"].items():
            if role in (facts.get("roles") or []):
                found |= {key for key in keys if fnmatch.fnmatch(key, entry)}
    return sorted(found)


def accepted():
    """
    The ids of all minions whose key is accepted.

    Returns a sorted list of strings.

    CLI Example:

    .. code-block:: bash

        salt-run inventory.accepted
    """
    with salt.key.get_key(__opts__) as key:
        return sorted(key.list_keys()["minions"])
