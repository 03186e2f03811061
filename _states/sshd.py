"""
What the SSH server works by: its configuration, and the keys that the host is known by.
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


def keyed(name, keys):
    """
    The host has its keys. Those that are missing or weak are made; a good one is never replaced.

    name
        Any.
    keys
        A dictionary from a key's type, as ``ssh-keygen`` calls it, to its file.

    .. code-block:: yaml

        ssh/host-keys:
          sshd.keyed:
            - keys:
                ed25519: /etc/ssh/ssh_host_ed25519_key
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": "The host has its keys."}
    try:
        wrong = __salt__["sshd.lacking"](keys)
        if not wrong:
            return ret
        if __opts__["test"]:
            told = ", ".join(f"{file} {what}" for file, what in wrong.items())
            ret.update(result=None, changes=wrong, comment=f"Keys would be made: {told}.")
            return ret
        ret["changes"] = __salt__["sshd.make_keys"](keys)
        ret["comment"] = "Keys were made. Compare them at the next login: sshd.fingerprints"
        if left := __salt__["sshd.lacking"](keys):
            ret.update(result=False, comment=f"Still wrong: {left}")
    except CommandExecutionError as error:
        ret.update(result=False, comment=str(error))
    return ret
