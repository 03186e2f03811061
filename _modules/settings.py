"""
The one way to get settings.

``settings.get`` merges, for one service of this host, ``salt/<service>/defaults.yaml``, its
differences by operating system (``os.yaml``), the environment's ``overrides.yaml`` and what the
inventory says of this host; then every ``auto`` is computed by :mod:`tuning`. The defaults file is
the schema (:mod:`schema`): whatever it doesn't know is an error, and all errors of a host are told
at once.
"""

import contextlib
import copy
import json
import os
import pathlib
import time
import typing

import salt.fileclient
import salt.state
import yaml
from salt.exceptions import CommandExecutionError, LoaderError
from salt.loader.dunder import __file_client__

# Grains that os.yaml tells systems apart by, the most general first.
_OS_GRAINS = ("os_family", "os", "oscodename")
# What an entry of the inventory may say of a host.
_HOST_KEYS = ("address", "network", "roles", "settings", "lab")
_SITE_SCHEMA = "django/site.yaml"
# Seconds after which files of the state tree are read again.
_KEEP = 60


class _Service(typing.NamedTuple):
    """What is known of one service on this host, by the dotted names of its keys."""

    schema: dict
    values: dict
    origins: dict  # default, os.yaml, overrides.yaml, hosts.yaml or tuned
    why: dict  # the arithmetic of keys that may be auto


class _Host(typing.NamedTuple):
    """Everything that was read and computed for this host, and what from."""

    told: list
    read_at: float
    services: dict
    sites: dict
    errors: list


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
    found = _service(service)
    return {**_nested(found.values), "why": dict(found.why)}


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
    host = _sound()
    if name not in host.sites:
        known = ", ".join(sorted(host.sites)) or "none"
        raise CommandExecutionError(
            f"There is no site {name!r} in this environment. Sites: {known}."
        )
    return _nested(host.sites[name])


def source(path):
    """
    A file of the state tree, as it was delivered to this host.

    path
        Where it is below ``salt/``.

    Returns its text. Raises ``CommandExecutionError`` if there is no such file.

    CLI Example:

    .. code-block:: bash

        salt 'app1' settings.source accounts/operator.yaml
    """
    return _text(_delivered([path]), path)


def explain(service, key=None, fresh=True):
    """
    Where each setting of a service comes from, and the arithmetic of what is computed.

    service
        The service's name.
    key
        Only this key, or the keys below it.
    fresh
        Read the pillar anew, as ``state.apply`` does; else it is what the minion remembers.

    Returns a dictionary from a key's dotted name to ``value | origin | arithmetic``. The origin
    is ``default``, ``os.yaml``, ``overrides.yaml``, ``hosts.yaml`` or ``tuned``. Raises
    ``CommandExecutionError`` if there is no such service or key.

    CLI Example:

    .. code-block:: bash

        salt 'db1' settings.explain postgres
        salt 'db1' settings.explain postgres work_mem
    """
    if fresh:
        return _afresh("explain", service, key)
    found = _service(service)
    lines = {
        name: _line(value, found.origins[name], found.why.get(name))
        for name, value in found.values.items()
        if key is None or name == key or name.startswith(f"{key}.")
    }
    if not lines:
        near = __salt__["schema.nearest"](key, list(found.values))
        raise CommandExecutionError(f"{service} has no setting {key!r}.{near}")
    return lines


def diff(service=None, fresh=True):
    """
    What somebody has set: what differs from the defaults and isn't computed.

    service
        The service's name; all services of this host if not given.
    fresh
        As for :func:`explain`.

    Returns a dictionary from service to a dictionary from key to
    ``value | origin | default: ...``; a service without differences isn't listed.

    CLI Example:

    .. code-block:: bash

        salt '*' settings.diff
        salt 'db1' settings.diff postgres
    """
    if fresh:
        return _afresh("diff", service)
    services = [service] if service else __salt__["inventory.services"]()
    differences = {}
    for name in services:
        found = _service(name)
        lines = {
            key: _line(value, found.origins[key], f"default: {_shown(found.schema[key].default)}")
            for key, value in found.values.items()
            if found.origins[key] not in ("default", "tuned") and value != found.schema[key].default
        }
        if lines:
            differences[name] = lines
    return differences


def check(fresh=True):
    """
    Check all settings that this host reads: those of its services and of every site.

    fresh
        As for :func:`explain`.

    Returns what was checked, or every error, and then the exit code is 1. ``warnings`` names
    services that this host is too small for, and settings that promise more RAM than it has.

    CLI Example:

    .. code-block:: bash

        salt '*' settings.check
    """
    if fresh:
        found = _afresh("check")
        __context__["retcode"] = 0 if found["ok"] else 1
        return found
    wrong = errors()
    if wrong:
        return {"ok": False, "errors": wrong}
    host = _host()
    services = __salt__["inventory.services"]()
    found = {"ok": True, "services": services, "sites": sorted(host.sites)}
    promised = {name: _service(name).values for name in services}
    warnings = __salt__["tuning.warnings"](_hardware(), _tenants(), promised, _site_count(host))
    return {**found, "warnings": warnings} if warnings else found


def errors():
    """
    What is wrong with the settings that this host reads, or with its place in the inventory.

    The top file asks: a host with errors gets none of its services, only the sentences.

    Returns a list of sentences; an empty one if all is well.

    CLI Example:

    .. code-block:: bash

        salt '*' settings.errors
    """
    try:
        return _host().errors
    except CommandExecutionError as error:
        return [str(error)]


def _afresh(function, *arguments):
    """Ask as a state run would, with a pillar that is compiled now."""
    if _ssh_client():
        return __salt__[f"settings.{function}"](*arguments, fresh=False)
    with salt.state.HighState(__opts__) as high:
        return high.state.functions[f"settings.{function}"](*arguments, fresh=False)


def _line(value, *notes):
    return " | ".join([_shown(value), *(note for note in notes if note)])


def _shown(value):
    return str(value) if isinstance(value, str) and value else json.dumps(value)


def _nested(flat):
    """Values by dotted name as the mappings that the names describe; a copy, to be changed."""
    root = {}
    for name, value in flat.items():
        *groups, last = name.split(".")
        branch = root
        for group in groups:
            branch = branch.setdefault(group, {})
        branch[last] = copy.copy(value)
    return root


def _service(name):
    """A service's settings; where nobody set any, the defaults are read when asked for."""
    host = _sound()
    if name not in host.services:
        files = _delivered(_sources([name]))
        if not _exists(files, name):
            raise CommandExecutionError(f"There is no service {name!r}.{_hint(name)}")
        host.services[name] = _tuned(host, name, _layered(host, files, name, {}, {}))
    return host.services[name]


def _sound():
    """This host's settings, if there is nothing wrong with them."""
    host = _host()
    if not host.errors:
        return host
    count = "an error" if len(host.errors) == 1 else f"{len(host.errors)} errors"
    raise CommandExecutionError(
        "\n".join([f"The settings of {__opts__['id']} have {count}:", *host.errors])
    )


def _host():
    """
    This host's settings, read and computed once a run.

    A loader may outlive a change of pillar or grains, so what they said is compared. Files of the
    state tree are read again after a minute.
    """
    told = _told()
    kept = __context__.get("settings")
    if kept and kept.told == told and time.monotonic() - kept.read_at < _KEEP:
        return kept
    host = _Host(copy.deepcopy(told), time.monotonic(), {}, {}, [])
    _fill(host)
    __context__["settings"] = host
    return host


def _told():
    """What pillar and grains say that settings depend on."""
    facts = [__opts__["id"]]
    facts += [__pillar__.get(name) for name in ("environment", "hosts", "sites", "overrides")]
    facts += [__grains__.get(name) for name in (*_OS_GRAINS, "hardware")]
    return facts


def _fill(host):
    """
    Read and check what is set for this host's services, or for others, and for all sites.

    Each file costs a question to the master: where nothing is set, nothing can be wrong, and
    :func:`_service` reads the defaults when somebody wants them. What it will need is looked at
    now: a role that doesn't exist or a missing grain is an error of the host.
    """
    __salt__["inventory.services"]()
    _hardware()
    overrides = _mapping(host, __pillar__.get("overrides"), f"{_file('overrides')}: ")
    own = _mapping(host, _own_settings(host), _own_prefix())
    names = list(dict.fromkeys([*map(str, overrides), *map(str, own)]))
    files = _delivered([*_sources(names), _SITE_SCHEMA])
    for name in names:
        if _exists(files, name):
            host.services[name] = _layered(host, files, name, overrides, own)
            continue
        for given, where in ((overrides, f"{_file('overrides')}: "), (own, _own_prefix())):
            if name in given:
                host.errors.append(f"{where}{name} is no service.{_hint(name)}")
    _fill_sites(host, files)
    if host.errors:
        return
    for name, service in host.services.items():
        host.services[name] = _tuned(host, name, service)


def _fill_sites(host, files):
    where = f"{_file('sites')}: sites."
    schema = _schema(files, _SITE_SCHEMA)
    for name, given in _mapping(host, __pillar__.get("sites"), where).items():
        found, errors = schema.check(given, f"{where}{name}.")
        host.errors.extend(errors)
        host.sites[name] = {**schema.defaults(), **found}


def _layered(host, files, service, overrides, own):
    """A service's settings before anything is computed."""
    schema = _schema(files, f"{service}/defaults.yaml")
    values = schema.defaults()
    origins = dict.fromkeys(values, "default")
    layers = _os_layers(files, service)
    if service in overrides:
        layers.append(("overrides.yaml", overrides[service], f"{_file('overrides')}: {service}."))
    if service in own:
        layers.append(("hosts.yaml", own[service], f"{_own_prefix()}{service}."))
    for origin, given, where in layers:
        found, errors = schema.check({} if given is None else given, where)
        host.errors.extend(errors)
        for name, value in found.items():
            values[name] = schema[name].merged(values[name], value)
            origins[name] = origin
    return _Service(schema, values, origins, {})


def _os_layers(files, service):
    """What os.yaml says of this host's system: (origin, settings, where they stand)."""
    source = f"{service}/os.yaml"
    differences = yaml.safe_load(_text(files, source)) or {} if files[source] else {}
    unknown = sorted(set(differences) - set(_OS_GRAINS))
    if unknown:
        raise CommandExecutionError(
            f"salt/{source}: {unknown[0]} is no grain that systems are told apart by. "
            f"Grains: {', '.join(_OS_GRAINS)}."
        )
    layers = []
    for grain in _OS_GRAINS:
        system = __grains__.get(grain)
        given = (differences.get(grain) or {}).get(system)
        if given:
            layers.append(("os.yaml", given, f"salt/{source}: {grain}.{system}."))
    return layers


def _tuned(host, name, service):
    """A service's settings with each ``auto`` computed, if this host runs it."""
    auto = [key for key, known in service.schema.items() if known.auto]
    if not auto or name not in __salt__["inventory.services"]():
        return service
    sites = _site_count(host, name)
    computed = __salt__[f"tuning.{name}"](_hardware(), _tenants(), service.values, sites)
    values, origins, why = dict(service.values), dict(service.origins), {}
    for key in auto:
        if key not in computed:
            raise CommandExecutionError(f"tuning.{name} doesn't compute {key}.")
        value, arithmetic = computed[key]
        if values[key] == "auto":
            values[key] = service.schema[key].value(value)
            origins[key], why[key] = "tuned", arithmetic
        else:
            why[key] = f"set in {origins[key]}; auto would be {value}: {arithmetic}"
    return _Service(service.schema, values, origins, why)


def _tenants():
    """What shares this host's RAM: its services, and Salt's master."""
    master = ["salt_master"] if "master" in __salt__["inventory.roles"]() else []
    return __salt__["inventory.services"]() + master


def _site_count(host, service=None):
    """How many sites share a service; the pooler serves those whose database lies behind it."""
    sites = list(host.sites.values())
    if service == "pgbouncer":
        sites = [
            site
            for site in sites
            if site["database.engine"] == "postgres"
            and site["database.pooled"]
            and not site["database.host"]
        ]
    return max(1, len(sites))


def _hardware():
    facts = __grains__.get("hardware")
    if not facts:
        raise CommandExecutionError(
            "The grain 'hardware' isn't there yet: run `saltutil.sync_all` on this host."
        )
    return facts


def _sources(services):
    return [f"{name}/{file}" for name in services for file in ("defaults.yaml", "os.yaml")]


def _delivered(sources):
    """Where files of the state tree are on this host: source -> path, or nothing."""
    urls = [f"salt://{source}" for source in sources]
    return dict(zip(sources, (_ssh_client() or _client()).cache_files(urls), strict=True))


def _client():
    """
    A file client for the whole run. `cp` makes one for each call where it isn't a state run that
    calls: 50 ms, most of them to read the minion's key.
    """
    with contextlib.suppress(LoaderError):
        if __file_client__.value():
            return __file_client__.value()
    mine = f"settings.client.{os.getpid()}"  # a connection isn't shared with what is forked
    if mine not in __context__:
        __context__[mine] = salt.fileclient.get_file_client(__opts__)
    return __context__[mine]


def _ssh_client():
    """
    The file client of salt-ssh, if it is what runs this: on the master, with a fresh pillar.

    Its own ``cp`` would copy the files to the host.
    """
    return __context__.get("fileclient")


def _exists(files, service):
    return bool(files[f"{service}/defaults.yaml"])


def _schema(files, source):
    try:
        return __salt__["schema.read"](_text(files, source), f"salt/{source}")
    except ValueError as error:
        raise CommandExecutionError(str(error)) from error


def _text(files, source):
    if not files[source]:
        raise CommandExecutionError(f"salt://{source} can't be read from the file server.")
    return pathlib.Path(files[source]).read_text(encoding="utf-8")


def _hint(name):
    """What to say of a service that doesn't exist."""
    ending = "/defaults.yaml"
    listed = sorted(__salt__["cp.list_master"]())
    known = [file.removesuffix(ending) for file in listed if file.endswith(ending)]
    return __salt__["schema.nearest"](name, known)


def _mapping(host, given, where):
    """What stands in the pillar, if it is a mapping."""
    if not given:
        return {}
    if isinstance(given, dict):
        return given
    host.errors.append(f"{where.rstrip('.: ')} should be a mapping.")
    return {}


def _own_settings(host):
    """What the inventory sets for this host alone."""
    entry = __salt__["inventory.entry"]()
    facts = __pillar__["hosts"][entry]
    for key in sorted(set(facts) - set(_HOST_KEYS)):
        near = __salt__["schema.nearest"](key, list(_HOST_KEYS))
        host.errors.append(f"{_file('hosts')}: hosts.{entry}.{key} is unknown.{near}")
    return facts.get("settings")


def _own_prefix():
    return f"{_file('hosts')}: hosts.{__salt__['inventory.entry']()}.settings."


def _file(name):
    return f"pillar/environments/{__pillar__.get('environment')}/{name}.yaml"
