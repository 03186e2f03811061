"""
The one way to get settings.

``settings.get`` merges, for one service of this host, ``salt/<service>/defaults.yaml``, its
differences by operating system (``os.yaml``), the environment's ``overrides.yaml`` and what the
inventory says of this host; then every ``auto`` is computed by :mod:`tuning`. The defaults file is
the schema (:mod:`schema`): whatever it doesn't know is an error, and all errors of a host are told
at once.
"""

import collections
import copy
import difflib
import json
import os

import yaml
from salt.exceptions import CommandExecutionError

# Grains that os.yaml may tell systems apart by, the most general first.
_OS_GRAINS = ("os_family", "os", "oscodename")
_SITE_SCHEMA = "django/site.yaml"

# What is known of one service on this host, by the dotted names of its keys.
_Resolved = collections.namedtuple("_Resolved", "keys values origins why")


def get(service):
    """
    The settings of a service on this host.

    service
        The service's name: its folder in the state tree.

    Returns a dictionary with the keys of the service's ``defaults.yaml``, nested as there, and
    ``why``: the arithmetic of each key that may be ``auto``, by its dotted name. Sizes and
    durations are text with attributes: ``.bytes``, ``.k``, ``.M``, ``.G`` and ``.ms``, ``.s``.
    What is computed from the hardware is known only on hosts that run the service; elsewhere it
    stays ``auto``. Raises ``CommandExecutionError`` with all errors of this host's settings.

    CLI Example:

    .. code-block:: bash

        salt 'cache*' settings.get varnish
    """
    host = _host()
    if host["errors"]:
        raise CommandExecutionError(_sentence(host["errors"]))
    resolved = _resolved(host, service)
    settings = __salt__["schema.nested"](resolved.values)
    settings["why"] = dict(resolved.why)
    return settings


def site(name):
    """
    The settings of a site: what the pillar says of it, with the default of every other key.

    name
        The site's name.

    Returns a dictionary with the keys of ``salt/django/site.yaml``. Raises
    ``CommandExecutionError`` if there is no such site, or with all errors of this host's settings.

    CLI Example:

    .. code-block:: bash

        salt 'app*' settings.site newsroom
    """
    host = _host()
    if host["errors"]:
        raise CommandExecutionError(_sentence(host["errors"]))
    if name not in host["sites"]:
        known = ", ".join(sorted(host["sites"])) or "none"
        raise CommandExecutionError(
            f"There is no site {name!r} in this environment. Sites: {known}."
        )
    return __salt__["schema.nested"](host["sites"][name])


def explain(service, key=None):
    """
    Where each setting of a service comes from, and the arithmetic of what is computed.

    service
        The service's name.
    key
        Only this key, or the keys below it.

    Returns a dictionary from a key's dotted name to ``value | origin | arithmetic``. The origin
    is ``default``, ``os.yaml``, ``overrides.yaml``, ``hosts.yaml`` or ``tuned``.

    CLI Example:

    .. code-block:: bash

        salt 'db1' settings.explain postgres
        salt 'db1' settings.explain postgres work_mem
    """
    resolved = _checked(service)
    chosen = {
        name: value
        for name, value in resolved.values.items()
        if key is None or name == key or name.startswith(f"{key}.")
    }
    if not chosen:
        near = difflib.get_close_matches(key, resolved.values, n=1)
        raise CommandExecutionError(
            f"{service} has no setting {key!r}."
            + (f" Did you mean {near[0]}?" if near else f" It has {', '.join(resolved.values)}.")
        )
    return {name: _line(resolved, name, value) for name, value in chosen.items()}


def diff(service=None):
    """
    What differs from the defaults: set by somebody, not computed.

    service
        The service's name; all services of this host if not given.

    Returns a dictionary from service to a dictionary from key to ``value | origin | default``.

    CLI Example:

    .. code-block:: bash

        salt '*' settings.diff
    """
    services = [service] if service else __salt__["inventory.services"]()
    found = {}
    for name in services:
        resolved = _checked(name)
        changed = {
            key: f"{_shown(value)} | {resolved.origins[key]} "
            f"| default: {_shown(resolved.keys[key].default)}"
            for key, value in resolved.values.items()
            if resolved.origins[key] not in ("default", "tuned")
            and value != resolved.keys[key].default
        }
        if changed:
            found[name] = changed
    return found


def check():
    """
    Check all settings that this host reads: those of its services and of every site.

    Returns ``ok`` and what was checked; or every error, and the command's exit code is 1.

    CLI Example:

    .. code-block:: bash

        salt '*' settings.check
    """
    host = _host()
    if host["errors"]:
        __context__["retcode"] = 1
        return {"ok": False, "errors": host["errors"]}
    return {"ok": True, "services": list(host["services"]), "sites": sorted(host["sites"])}


def _checked(service):
    host = _host()
    if host["errors"]:
        raise CommandExecutionError(_sentence(host["errors"]))
    return _resolved(host, service)


def _line(resolved, name, value):
    parts = [_shown(value), resolved.origins[name]]
    if name in resolved.why:
        parts.append(resolved.why[name])
    return " | ".join(parts)


def _shown(value):
    return str(value) if isinstance(value, str) else json.dumps(value)


def _sentence(errors):
    count = "An error" if len(errors) == 1 else f"{len(errors)} errors"
    return "\n".join([f"{count} in the settings of {__opts__['id']}:", *errors])


def _host():
    """
    Everything that was read and computed for this host; kept for the rest of the run.

    What it was made from is kept beside it: a loader may outlive a change of pillar, grains or
    files.
    """
    told = _told()
    kept = __context__.get("settings")
    if kept and kept["told"] == told and all(_stamp(p) == s for p, s in kept["files"].items()):
        return kept
    host = {
        "told": told,
        "files": {},
        "listed": sorted(__salt__["cp.list_master"]()),
        "services": {},
        "sites": {},
        "errors": [],
    }
    _fill(host)
    __context__["settings"] = host
    return host


def _told():
    """What pillar and grains say that settings depend on, to be compared."""
    pillar, grains = __pillar__, __grains__
    facts = [pillar.get(name) for name in ("environment", "hosts", "sites", "overrides")]
    facts += [grains.get(name) for name in (*_OS_GRAINS, "hardware")]
    return json.dumps([__opts__["id"], *facts], default=str)


def _stamp(path):
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def _fill(host):
    """Read, check and compute the settings of all services of this host, and all sites."""
    services = __salt__["inventory.services"]()
    overrides = _mapping(host, __pillar__.get("overrides"), _file("overrides"))
    own = _mapping(host, _own().get("settings"), _file("hosts"), f"hosts.{_entry()}.settings.")
    known = [name.partition("/")[0] for name in host["listed"] if name.endswith("/defaults.yaml")]
    for source, given, prefix in (
        (_file("overrides"), overrides, ""),
        (_file("hosts"), own, f"hosts.{_entry()}.settings."),
    ):
        for service in given:
            if service not in known:
                near = difflib.get_close_matches(service, known, n=1)
                hint = f" Did you mean {near[0]}?" if near else ""
                host["errors"].append(
                    f"{source}: {prefix}{service} is no service.{hint} Known: {', '.join(known)}."
                )
    for service in known:
        # What is written of services that run elsewhere is checked too: here or nowhere.
        if service in services or service in overrides or service in own:
            host["services"][service] = _layered(host, service, overrides, own)
    if not host["errors"]:
        host["services"] = {
            service: _tuned(host, service, layered, services)
            for service, layered in host["services"].items()
        }
    _fill_sites(host)


def _fill_sites(host):
    keys = _schema(host, _SITE_SCHEMA)
    sites = _mapping(host, __pillar__.get("sites"), _file("sites"), "sites.")
    for name, given in sites.items():
        found, errors = __salt__["schema.values"](
            keys, given, _file("sites"), prefix=f"sites.{name}."
        )
        host["errors"] += errors
        host["sites"][name] = {**__salt__["schema.defaults"](keys), **found}


def _resolved(host, service):
    """A service's settings; those of a service that runs elsewhere are read when asked for."""
    if service not in host["services"]:
        if f"{service}/defaults.yaml" not in host["listed"]:
            known = [n.partition("/")[0] for n in host["listed"] if n.endswith("/defaults.yaml")]
            near = difflib.get_close_matches(service, known, n=1)
            raise CommandExecutionError(
                f"There is no service {service!r}."
                + (f" Did you mean {near[0]}?" if near else f" Services: {', '.join(known)}.")
            )
        host["services"][service] = _layered(host, service, {}, {})
    return host["services"][service]


def _layered(host, service, overrides, own):
    """A service's settings before anything is computed."""
    keys = _schema(host, f"{service}/defaults.yaml")
    values = __salt__["schema.defaults"](keys)
    origins = dict.fromkeys(values, "default")
    layers = list(_os_layers(host, service))
    layers.append(("overrides.yaml", overrides, _file("overrides"), f"{service}."))
    layers.append(("hosts.yaml", own, _file("hosts"), f"hosts.{_entry()}.settings.{service}."))
    for origin, given, source, prefix in layers:
        if service not in given:
            continue
        found, errors = __salt__["schema.values"](keys, given[service], source, prefix=prefix)
        host["errors"] += errors
        for name, value in found.items():
            values[name] = _merged(keys[name], values[name], value)
            origins[name] = origin
    return _Resolved(keys, values, origins, {})


def _os_layers(host, service):
    source = f"{service}/os.yaml"
    if source not in host["listed"]:
        return
    differences = yaml.safe_load(_read(host, source)) or {}
    unknown = set(differences) - set(_OS_GRAINS)
    if unknown:
        raise CommandExecutionError(
            f"salt/{source}: {min(unknown)!r} is no grain that systems are told apart by. "
            f"Known: {', '.join(_OS_GRAINS)}."
        )
    for grain in _OS_GRAINS:
        given = (differences.get(grain) or {}).get(__grains__.get(grain))
        if given:
            where = f"{grain}.{__grains__[grain]}."
            yield "os.yaml", {service: given}, f"salt/{source}", where


def _merged(key, old, new):
    """A free mapping is merged name by name, everything else replaced; null takes a name away."""
    if key.kind != "map" or not isinstance(new, dict) or not isinstance(old, dict):
        return new
    both = {**old, **new}
    return {name: value for name, value in both.items() if value is not None}


def _tuned(host, service, layered, services):
    """A service's settings with each ``auto`` computed."""
    keys, values, origins, _ = layered
    auto = [name for name, key in keys.items() if key.auto]
    if not auto or service not in services:
        return layered
    computed = __salt__[f"tuning.{service}"](_hardware(), services, values, _site_count())
    values, origins, why = dict(values), dict(origins), {}
    for name in auto:
        if name not in computed:
            raise CommandExecutionError(f"tuning.{service} doesn't compute {name}.")
        value, arithmetic = computed[name]
        if values[name] == "auto":
            values[name] = __salt__["schema.measured"](keys[name], value)
            origins[name], why[name] = "tuned", arithmetic
        else:
            why[name] = f"set in {origins[name]}; auto would be {value}: {arithmetic}"
    return _Resolved(keys, values, origins, why)


def _site_count():
    return max(1, len(__pillar__.get("sites") or {}))


def _hardware():
    facts = __grains__.get("hardware")
    if not facts:
        raise CommandExecutionError(
            "The grain 'hardware' isn't there yet: run `saltutil.sync_all` on this host."
        )
    return facts


def _schema(host, source):
    try:
        return __salt__["schema.read"](_read(host, source), f"salt/{source}")
    except ValueError as error:
        raise CommandExecutionError(str(error)) from error


def _read(host, source):
    """The text of a file of the state tree, through whatever serves it."""
    path = __salt__["cp.cache_file"](f"salt://{source}")
    if not path:
        raise CommandExecutionError(f"salt://{source} can't be read from the file server.")
    host["files"][path] = _stamp(path)
    with open(path, encoding="utf-8") as file:
        return file.read()


def _mapping(host, given, source, prefix=""):
    """What stands in the pillar, if it is a mapping."""
    if given in (None, ""):
        return {}
    if not isinstance(given, dict):
        host["errors"].append(f"{source}: {prefix.rstrip('.')} should be a mapping.")
        return {}
    return copy.deepcopy(dict(given))


def _entry():
    """The key of this host in the inventory: its id or a pattern."""
    return __salt__["inventory.entry"]()


def _own():
    return (__pillar__.get("hosts") or {}).get(_entry()) or {}


def _file(name):
    return f"pillar/environments/{__pillar__.get('environment')}/{name}.yaml"
