"""
What the running Varnish works by.
"""

from salt.exceptions import CommandExecutionError


def loaded(name):
    """
    The running daemon works by this VCL. If it doesn't, the VCL is compiled beside the running
    one and swapped in; what is cached stays, and a VCL that doesn't compile changes nothing.

    name
        The VCL file.

    .. code-block:: yaml

        varnish/loaded:
          varnish.loaded:
            - name: /etc/varnish/saltern.vcl
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": f"Varnish works by {name}."}
    try:
        active = __salt__["varnish.active"](name)
        if active["current"]:
            return ret
        if __opts__["test"]:
            ret.update(result=None, comment=f"{name} would be loaded in place of {active['name']}.")
            ret["changes"] = {"vcl": {"old": active["name"], "new": name}}
            return ret
        ret["changes"] = __salt__["varnish.reload"](name)
        ret["comment"] = f"{name} was loaded."
    except CommandExecutionError as error:
        ret.update(result=False, comment=str(error))
    return ret
