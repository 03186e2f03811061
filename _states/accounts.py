"""
Accounts that are no more.
"""

from salt.exceptions import CommandExecutionError


def cleaned(name):
    """
    Whoever is no operator any more has no account: no keys, no cron jobs, no running processes.

    name
        Nothing but the state's name.

    .. code-block:: yaml

        accounts/cleaned:
          accounts.cleaned: []
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": "Nobody has to go."}
    leavers = __salt__["accounts.leavers"]()
    if not leavers:
        return ret
    names = ", ".join(leavers)
    if __opts__["test"]:
        ret.update(result=None, comment=f"Accounts would be removed: {names}.")
        ret["changes"] = dict.fromkeys(leavers, "removed")
        return ret
    ret["comment"] = f"Accounts were removed: {names}."
    try:
        for leaver, purge in leavers.items():
            ret["changes"][leaver] = __salt__["accounts.remove"](leaver, purge)
    except CommandExecutionError as error:
        ret.update(result=False, comment=str(error))
    return ret
