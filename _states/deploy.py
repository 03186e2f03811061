"""
Which release of a site is live, as a state: for hosts that are to bring themselves up to date.
"""


def shipped(name, rev=None, strategy=None, allow_destructive=False):
    """
    A revision of a site is live on this host.

    name
        The site's name.

    rev
        A branch, tag or SHA; the site's ``revision`` if not given.

    strategy, allow_destructive
        As for ``deploy.ship``.

    .. code-block:: yaml

        newsroom/release:
          deploy.shipped:
            - name: newsroom
            - rev: v1.4
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": ""}
    if __opts__["test"]:
        plan = __salt__["deploy.plan"](name, rev)
        ret["comment"] = plan["comment"]
        if plan["live"] != plan["release"]:
            ret["result"] = None
            ret["changes"] = {"release": {"old": plan["live"], "new": plan["release"]}}
        return ret
    options = {"strategy": strategy, "allow_destructive": allow_destructive}
    report = __salt__["deploy.ship"](name, rev, **options)
    ret.update(result=report["result"], comment=report["comment"])
    if report["result"] and report["from"] != report["release"]:
        ret["changes"] = {"release": {"old": report["from"], "new": report["release"]}}
    return ret


def joined(name):
    """
    A host on which nothing of a site is live yet gets what is live on the others of the farm, not
    what is newest. Does nothing where something is live, or nothing is anywhere.

    name
        The site's name.

    .. code-block:: yaml

        django/newsroom/joined:
          deploy.joined:
            - name: newsroom
            - order: last
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": f"{name} is live here."}
    if name in __salt__["deploy.live"]():
        return ret
    found = __salt__["deploy.live_elsewhere"](name)
    if not found:
        ret["comment"] = f"Nothing of {name} is live in the farm yet."
        return ret
    ret["changes"] = {"release": {"old": None, "new": found["release"]}}
    if __opts__["test"]:
        comment = f"{found['release']} would be shipped, as on the other hosts."
        return {**ret, "result": None, "comment": comment}
    report = __salt__["deploy.ship"](name, found["sha"])
    ret.update(result=report["result"], comment=report["comment"])
    if not report["result"]:
        ret["changes"] = {}
    return ret


def afresh(name):
    """
    The live release runs with the site's present settings: for ``onchanges`` of its environment
    or of its part of the app server's configuration. Does nothing where nothing is live.

    name
        The site's name.

    .. code-block:: yaml

        newsroom/reload:
          deploy.afresh:
            - name: newsroom
            - onchanges:
              - file: uwsgi/newsroom/config
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": f"{name} has no release yet."}
    live = __salt__["deploy.status"](name)[name]["live"]
    if not live:
        return ret
    if __opts__["test"]:
        return {**ret, "result": None, "comment": f"{live} would be started afresh."}
    report = __salt__["deploy.reload"](name)
    ret.update(result=report["result"], comment=report["comment"])
    if report["result"]:
        ret["changes"] = {"reloaded": live}
    return ret
