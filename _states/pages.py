"""
The sites' own error pages on the hosts in front of the app hosts.
"""

from salt.exceptions import CommandExecutionError


def brought(name):
    """
    The daemon has each site's own pages, as a live app host has them. A site that no app host has
    live keeps those that are here.

    name
        ``haproxy`` or ``varnish``; it is reloaded if pages changed, never with ones that it
        refuses.

    .. code-block:: yaml

        varnish/pages:
          pages.brought:
            - name: varnish
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": ""}
    try:
        found = __salt__["pages.bring"](daemon=name, test=__opts__["test"])
    except CommandExecutionError as error:
        ret.update(result=False, comment=str(error))
        return ret
    told = "The pages are there."
    if found["changed"]:
        ret["changes"] = {"pages": found["changed"]}
        told = "Pages were brought."
        if __opts__["test"]:
            ret["result"], told = None, "Pages would be brought."
    ret["comment"] = "\n".join([told, *found["notes"]])
    return ret
