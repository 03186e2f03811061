"""
Operators: who has an account on this host.

They stand in ``operators.yaml`` of an environment; ``salt/accounts/operator.yaml`` describes what
one may say of them. The part of ``accounts`` that changes nothing, in a file of its own: states ask
for it while they are rendered, and for salt-ssh that is on the master (``_wrapper/``).
"""

import contextlib
import pwd
import re

from salt.exceptions import CommandExecutionError

__virtualname__ = "accounts"

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,30}")
# Below it accounts belong to the system.
_FIRST_PERSON = 1000


def __virtual__():
    return __virtualname__


def listed():
    """
    The operators of this environment, those that are ``absent`` too.

    Returns a dictionary from name to the keys of ``salt/accounts/operator.yaml``. Raises
    ``CommandExecutionError`` with every error of ``operators.yaml``.

    CLI Example:

    .. code-block:: bash

        salt '*' accounts.listed
    """
    given = __pillar__.get("operators") or {}
    where = f"pillar/environments/{__pillar__.get('environment')}/operators.yaml: operators."
    if not isinstance(given, dict):
        raise CommandExecutionError(f"{where.rstrip('.')} should be a mapping.")
    source = "accounts/operator.yaml"
    schema = __salt__["schema.read"](__salt__["settings.source"](source), f"salt/{source}")
    found, errors = {}, []
    for name, told in given.items():
        errors += _wrong_name(str(name), where)
        values, wrong = schema.check({} if told is None else told, f"{where}{name}.")
        errors += wrong
        found[str(name)] = {**schema.defaults(), **values}
    if errors:
        raise CommandExecutionError("\n".join(errors))
    return found


def operators():
    """
    The operators that have an account on this host.

    Returns a dictionary from name to the keys of ``salt/accounts/operator.yaml``. Raises
    ``CommandExecutionError`` with every error of ``operators.yaml``.

    CLI Example:

    .. code-block:: bash

        salt '*' accounts.operators
    """
    roles = set(__salt__["inventory.roles"]())
    return {
        name: operator
        for name, operator in listed().items()
        if operator["state"] == "present"
        and (not operator["roles"] or roles & set(operator["roles"]))
    }


def way_in():
    """
    The operators that can log in to this host and become root on it.

    Returns a list of names. Where it is empty, what lets somebody in now should be left alone.

    CLI Example:

    .. code-block:: bash

        salt '*' accounts.way_in
    """
    return [name for name, who in operators().items() if who["keys"] and who["sudo"]]


def _wrong_name(name, where):
    if not _NAME.fullmatch(name):
        return [f"{where}{name} isn't a name for an account: lower-case letters, digits, - and _."]
    with contextlib.suppress(KeyError):
        if pwd.getpwnam(name).pw_uid < _FIRST_PERSON:
            return [f"{where}{name} is an account of the system's own: choose another name."]
    return []
