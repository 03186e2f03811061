"""
Accounts that are no more.
"""

from salt.exceptions import CommandExecutionError


def absent(name, purge=False):
    """
    An account, its keys, its cron jobs and its running processes are gone.

    name
        The account.

    purge
        Its home goes too; else root gets it.

    .. code-block:: yaml

        accounts/ada/gone:
          accounts.absent:
            - name: ada
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": f"{name} has no account."}
    if not __salt__["user.info"](name):
        return ret
    if __opts__["test"]:
        ret.update(result=None, comment=f"The account {name} would be removed.")
        ret["changes"] = {name: "removed"}
        return ret
    try:
        ret["changes"] = {name: __salt__["accounts.remove"](name, purge)}
        ret["comment"] = f"The account {name} was removed."
    except CommandExecutionError as error:
        ret.update(result=False, comment=str(error))
    return ret
