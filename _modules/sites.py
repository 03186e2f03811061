"""
The sites of the farm: what each is made of, where it lives on a host, what it is told.

A site is declared in ``pillar/environments/<environment>/sites.yaml``; ``salt/django/site.yaml``
describes every key.
"""

import pathlib
from urllib.parse import quote

from salt.exceptions import CommandExecutionError


def list_():
    """
    The names of all sites of this environment.

    Returns a sorted list of strings.

    CLI Example:

    .. code-block:: bash

        salt 'app*' sites.list
    """
    return sorted(__pillar__.get("sites") or {})


def get(name):
    """
    A site with the defaults of every key that the pillar doesn't set.

    name
        The site's name.

    Returns a dictionary with the keys of ``salt/django/site.yaml`` and ``name``. Raises
    ``CommandExecutionError`` if there is no such site or a key of it is wrong.

    CLI Example:

    .. code-block:: bash

        salt 'app*' sites.get newsroom
    """
    known = list_()
    if name not in known:
        raise CommandExecutionError(
            f"There is no site {name!r} in this environment. Sites: {', '.join(known) or 'none'}."
        )
    site = dict(__salt__["settings.site"](name))
    site["name"] = name
    site["database"] = dict(site["database"])
    site["database"]["name"] = site["database"]["name"] or name
    site["database"]["user"] = site["database"]["user"] or name
    return site


def paths(name):
    """
    Where a site's parts lie on a host that runs it.

    name
        The site's name. It needn't be in the pillar: a removed site's parts are found too.

    Returns a dictionary of absolute paths: ``root``, ``releases``, ``current``, ``repo``,
    ``virtualenvs``, ``shared``, ``static``, ``media``, ``env_file``, ``run``, ``socket``.

    CLI Example:

    .. code-block:: bash

        salt 'app*' sites.paths newsroom
    """
    common = __salt__["settings.get"]("django")
    root = pathlib.PurePosixPath(common["root"], name)
    run = pathlib.PurePosixPath(common["run"], name)
    found = {
        "root": root,
        "releases": root / "releases",
        "current": root / "current",
        "repo": root / "repo",
        "virtualenvs": root / "virtualenvs",
        "shared": root / "shared",
        "static": root / "shared" / "static",
        "media": root / "shared" / "media",
        "env_file": root / "shared" / ".env",
        "run": run,
        "socket": run / "live.sock",
    }
    return {key: str(path) for key, path in found.items()}


def user(name):
    """
    The unprivileged system user that a site's code runs as.

    name
        The site's name.

    Returns the user name. Its group has the same name.

    CLI Example:

    .. code-block:: bash

        salt 'app*' sites.user newsroom
    """
    return f"site-{name}"


def builder(name):
    """
    The system user that builds a site's releases and owns its code.

    name
        The site's name.

    Returns the user name. It belongs to the group of :func:`user`, which may read what it builds.

    CLI Example:

    .. code-block:: bash

        salt 'app*' sites.builder newsroom
    """
    return f"ship-{name}"


def environment(name):
    """
    The environment variables of a site: what its settings read.

    They hold secrets, so nothing should print them. Masked pillar values don't appear here: the
    secrets are read from the pillar itself.

    name
        The site's name.

    Returns a dictionary of strings. Raises ``CommandExecutionError`` if a secret that this host
    needs isn't in its pillar.

    CLI Example:

    .. code-block:: bash

        salt 'app1' sites.environment newsroom
    """
    site, where = get(name), paths(name)
    variables = {
        "DJANGO_SETTINGS_MODULE": site["settings_module"],
        "SECRET_KEY": _secret("sites", name, "secret_key"),
        "ALLOWED_HOSTS": ",".join(site["domains"]),
        "DATABASE_URL": _database_url(site),
        "CONN_MAX_AGE": str(__salt__["settings.get"]("django")["conn_max_age"].s),
        "STATIC_ROOT": where["static"],
        "STATIC_URL": site["static_url"],
        "MEDIA_ROOT": where["media"],
        "MEDIA_URL": site["media_url"],
    }
    variables.update({key: str(value) for key, value in site["environment"].items()})
    return variables


def database_password(name):
    """
    The password of a site's database user.

    name
        The site's name.

    Returns the password. Raises ``CommandExecutionError`` if this host's pillar doesn't hold it.

    CLI Example:

    .. code-block:: bash

        salt 'db1' sites.database_password newsroom
    """
    return _secret("postgres", "users", get(name)["database"]["user"])


def _database_url(site):
    base = site["database"]
    host = base["host"] or __salt__["inventory.primary"]()
    password = _secret("postgres", "users", base["user"])
    return (
        f"postgres://{quote(base['user'], safe='')}:{quote(password, safe='')}"
        f"@{host}:{base['port']}/{quote(base['name'], safe='')}"
    )


def _secret(*path):
    value = __pillar__.get("secrets") or {}
    for step in path:
        value = (value or {}).get(step)
    if not value:
        raise CommandExecutionError(
            f"The secret {':'.join(path)} isn't in this host's pillar: add it below "
            f"pillar/environments/{__pillar__.get('environment')}/secrets/."
        )
    return value


__func_alias__ = {"list_": "list"}
