"""
Packages that stay as they are until an operator updates them.
"""


def held(name, patterns):
    """
    Of the installed packages those that match a pattern are held, and no others.

    name
        Anything.

    patterns
        Patterns of package names, as in a shell.

    .. code-block:: yaml

        updates/held:
          updates.held:
            - patterns: ['salt-*', 'postgresql*']
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": "What is to be held is held."}
    found = __salt__["updates.holds"](patterns)
    if found["held"] == found["wanted"]:
        return ret
    ret["changes"] = {
        package: {"old": package in found["held"], "new": package in found["wanted"]}
        for package in set(found["held"]) ^ set(found["wanted"])
    }
    if __opts__["test"]:
        return ret | {"result": None, "comment": "Packages would be held, or no longer."}
    __salt__["updates.hold"](patterns)
    return ret | {"comment": "Packages are held, or no longer."}
