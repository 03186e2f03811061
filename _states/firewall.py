"""
The rules that are in force.
"""

from salt.exceptions import CommandExecutionError


def loaded(name, patience=20):
    """
    The firewall works by this ruleset. If it doesn't, or if somebody changed the rules by hand, the
    ruleset is loaded; it goes again if the master can't be reached under it.

    name
        The ruleset.

    patience
        Seconds that the master may take to be reached.

    .. code-block:: yaml

        firewall/loaded:
          firewall.loaded:
            - name: /etc/saltern/nftables.conf
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": f"{name} is in force."}
    try:
        if __salt__["firewall.active"](name):
            return ret
        if __opts__["test"]:
            ret.update(result=None, comment=f"{name} would be loaded.")
            ret["changes"] = {"rules": "loaded"}
            return ret
        ret["changes"] = __salt__["firewall.load"](name, patience)
        ret["comment"] = f"{name} was loaded."
    except CommandExecutionError as error:
        ret.update(result=False, comment=str(error))
    return ret
