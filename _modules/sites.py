"""
The sites of the farm: what each is made of, where it lives on a host, what it is told.

A site is declared in ``pillar/environments/<environment>/sites.yaml``; ``salt/django/site.yaml``
describes every key.
"""

import pathlib
from urllib.parse import quote

from salt.exceptions import CommandExecutionError

# By engine: its usual port, and the role of the hosts that run it.
_PORTS = {"postgres": 5432, "mariadb": 3306}
_ROLES = {"postgres": "database", "mariadb": "mariadb"}


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


def hosted(engine):
    """
    The sites whose database the farm itself runs.

    engine
        ``postgres`` or ``mariadb``.

    Returns a dictionary from the site's name to its ``database``: ``name``, ``user`` and so on.

    CLI Example:

    .. code-block:: bash

        salt 'db*' sites.hosted postgres
    """
    bases = {name: get(name)["database"] for name in list_()}
    return {n: b for n, b in bases.items() if b["engine"] == engine and not b["host"]}


def paths(name):
    """
    Where a site's parts lie on a host that runs it.

    name
        The site's name. It needn't be in the pillar: a removed site's parts are found too.

    Returns a dictionary of absolute paths: ``root``, ``releases``, ``current``, ``repo``,
    ``virtualenvs``, ``build``, ``deploy``, ``shared``, ``static``, ``pages``, ``media``,
    ``env_file``,
    ``run``, ``control``, ``socket``.

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
        "build": root / "build",
        "deploy": root / "deploy",
        "shared": root / "shared",
        "static": root / "shared" / "static",
        "pages": root / "shared" / "pages",
        "media": root / "shared" / "media",
        "env_file": root / "shared" / ".env",
        "run": run,
        "control": run / "control",
        # On the disk, not in `run`: after a boot the site is as it was before.
        "socket": root / "live.sock",
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
        "SECRET_KEY": secret("sites", name, "secret_key"),
        "ALLOWED_HOSTS": ",".join(site["domains"]),
        **_databases(site),
        "CONN_MAX_AGE": str(__salt__["settings.get"]("django")["conn_max_age"].s),
        "STATIC_ROOT": where["static"],
        "STATIC_URL": site["static_url"],
        "MEDIA_ROOT": where["media"],
        "MEDIA_URL": site["media_url"],
    }
    if site["tls"]["force"]:
        variables["FORCE_HTTPS"] = "on"
    variables.update(_caches(name, site))
    if __pillar__.get("environment") != "production":
        variables["EMAIL_URL"] = "consolemail://"  # into the log: nobody real gets any
    if site["queues"] and __salt__["inventory.peers"]("broker"):
        variables.update(_broker(name))
    variables.update({key: str(value) for key, value in site["environment"].items()})
    return variables


def cache_prefix(name, version=None):
    """
    What the keys of a site begin with in the caches, as Django makes them.

    name
        The site's name.
    version
        A ``cache_version``; all of them if not given.

    Returns a string. Raises ``CommandExecutionError`` if there is no such site.

    CLI Example:

    .. code-block:: bash

        salt 'cache1' sites.cache_prefix newsroom 1
    """
    prefix = f"{get(name)['name']}:"
    return prefix if version is None else f"{prefix}{version}:"


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
    base = get(name)["database"]
    return secret(base["engine"], "users", base["user"])


def redis_password(name):
    """
    The password of a site at the Redis of the cache hosts; the user is the site's name.

    name
        The site's name.

    Returns the password. Raises ``CommandExecutionError`` if this host's pillar doesn't hold it.

    CLI Example:

    .. code-block:: bash

        salt 'cache1' sites.redis_password newsroom
    """
    return secret("redis", "sites", name)


def broker_password(name):
    """
    The password of a site at the broker; the user is the site's name.

    name
        The site's name.

    Returns the password. Raises ``CommandExecutionError`` if this host's pillar doesn't hold it.

    CLI Example:

    .. code-block:: bash

        salt 'worker1' sites.broker_password newsroom
    """
    return secret("broker", "sites", name)


def _databases(site):
    """
    Where a site's data is. All PostgreSQL hosts are named, the one that takes writes first: a
    client goes to whichever takes writes, so that a promotion needs no word to the sites. Clients
    of MariaDB know one host.
    """
    base = site["database"]
    url = {"postgres": _postgres_url, "mariadb": _mariadb_url}[base["engine"]]
    if base["host"]:
        return {"DATABASE_URL": url(base, [base["host"]], base["port"] or _PORTS[base["engine"]])}
    first = __salt__["inventory.primary"](base["engine"])
    others = [p["address"] for p in __salt__["inventory.peers"](_ROLES[base["engine"]])]
    others = [address for address in others if address != first]
    port = __salt__["settings.get"](base["engine"])["port"]
    if base["engine"] == "mariadb":
        told = {"DATABASE_URL": url(base, [first], port)}
        if base["read_replicas"] and others:
            told["REPLICA_URL"] = url(base, others, port)
        return told
    direct = _postgres_url(base, [first, *others], port, writes=True)
    if not base["pooled"]:
        told = {"DATABASE_URL": direct}
    else:
        port = __salt__["settings.get"]("pgbouncer")["port"]
        told = {
            "DATABASE_URL": _postgres_url(base, [first, *others], port, writes=True),
            # Migrations, locks and LISTEN need a connection of their own.
            "DATABASE_DIRECT_URL": direct,
            # A cursor doesn't survive the transaction after which its connection goes to others.
            "DISABLE_SERVER_SIDE_CURSORS": "true",
        }
    if base["read_replicas"] and others:
        told["REPLICA_URL"] = _postgres_url(base, [*others, first], port)
    return told


def _mariadb_url(base, hosts, port):
    password = secret("mariadb", "users", base["user"])
    return (
        f"mysql://{quote(base['user'], safe='')}:{quote(password, safe='')}"
        f"@{hosts[0]}:{port}/{quote(base['name'], safe='')}?ssl_mode=REQUIRED&charset=utf8mb4"
    )


def _postgres_url(base, hosts, port, writes=False):
    password = secret("postgres", "users", base["user"])
    options = "sslmode=require&connect_timeout=3"
    if writes and len(hosts) > 1:
        options += "&target_session_attrs=read-write"
    return (
        f"postgres://{quote(base['user'], safe='')}:{quote(password, safe='')}"
        f"@{','.join(hosts)}:{port}/{quote(base['name'], safe='')}?{options}"
    )


def _caches(name, site):
    """What a site is told of the caches: memcached through this host's twemproxy, and Redis."""
    if not __salt__["inventory.peers"]("cache"):
        return {}
    port = __salt__["settings.get"]("twemproxy")["port"]
    told = {
        "CACHE_URL": f"pymemcache://127.0.0.1:{port}",
        "CACHE_PREFIX": name,
        "CACHE_VERSION": str(site["cache_version"]),
    }
    redis = __salt__["settings.get"]("redis")
    if "session" in redis["purposes"]:
        host = redis["primary"] or __salt__["inventory.peers"]("cache")[0]["id"]
        told["SESSION_REDIS_URL"] = _redis_url(
            name, redis_password(name), __salt__["inventory.address"](host), redis, "session"
        )
    return told


def _broker(name):
    """What a site is told of the brokers. Celery goes to the next one if one is away."""
    brokers = __salt__["inventory.peers"]("broker")
    password = broker_password(name)
    if __salt__["settings.get"]("celery")["broker"] == "redis":
        redis = __salt__["settings.get"]("redis")
        url = _redis_url(name, password, brokers[0]["address"], redis, "broker")
        # All sites' queues lie in one Redis, where each reaches only what begins with its name.
        return {"BROKER_URL": url, "BROKER_PREFIX": f"{name}:"}
    user, password = quote(name, safe=""), quote(password, safe="")
    settings = __salt__["settings.get"]("rabbitmq")
    urls = [f"amqp://{user}:{password}@{b['address']}:{settings['port']}/{user}" for b in brokers]
    return {"BROKER_URL": ";".join(urls), "BROKER_QUEUE_TYPE": settings["queue_type"]}


def _redis_url(name, password, address, settings, purpose):
    user, password = quote(name, safe=""), quote(password, safe="")
    return f"redis://{user}:{password}@{address}:{settings['ports'][purpose]}/0"


def secret(*path):
    """
    A secret of this host's pillar.

    path
        Where it stands below ``secrets:``, step by step.

    Returns its value. Raises ``CommandExecutionError`` if this host's pillar doesn't hold it, or it
    is no text.

    CLI Example:

    .. code-block:: bash

        salt 'worker1' sites.secret broker sites newsroom
    """
    value = __pillar__.get("secrets") or {}
    for step in path:
        value = (value or {}).get(step)
    if not value:
        raise CommandExecutionError(
            f"The secret {':'.join(path)} isn't in this host's pillar: add it below "
            f"pillar/environments/{__pillar__.get('environment')}/secrets/."
        )
    if not isinstance(value, str):
        raise CommandExecutionError(
            f"The secret {':'.join(path)} is no text: put it in quotes below "
            f"pillar/environments/{__pillar__.get('environment')}/secrets/."
        )
    return value


__func_alias__ = {"list_": "list"}
