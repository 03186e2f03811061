"""
What the SSH server works by.
"""

from salt.exceptions import CommandExecutionError


def configured(name):
    """
    The SSH server runs and works by this configuration. If it doesn't, the configuration takes the
    place of the one in use; where the server then doesn't answer, that one comes back.

    name
        The configuration, complete.

    .. code-block:: yaml

        ssh/configured:
          sshd.configured:
            - name: /etc/saltern/sshd_config
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": f"sshd works by {name}."}
    try:
        if __salt__["sshd.active"](name):
            return ret
        if __opts__["test"]:
            ret.update(result=None, comment=f"sshd would work by {name}.")
            ret["changes"] = {"configuration": name}
            return ret
        ret["changes"] = __salt__["sshd.configure"](name)
        ret["comment"] = f"sshd works by {name} now."
    except CommandExecutionError as error:
        ret.update(result=False, comment=str(error))
    return ret
