"""
Talk to the running Varnish: what it keeps, whom it asks, how well it does; make it forget or learn.
"""

import concurrent.futures
import difflib
import http.client
import json
import logging
import re
import subprocess
import time
import urllib.parse
import xml.etree.ElementTree

from salt.exceptions import CommandExecutionError

log = logging.getLogger(__name__)

_ADDRESS = "127.0.0.1"
_VCL = "/etc/varnish/saltern.vcl"


def active(path=_VCL):
    """
    The VCL that the daemon works by.

    path
        The file that it should work by.

    Returns ``name`` (as Varnish calls it) and ``current``: whether it is the text of that file.
    Raises ``CommandExecutionError`` if Varnish doesn't run.

    CLI Example:

    .. code-block:: bash

        salt 'cache*' varnish.active
    """
    name = _active()
    return {"name": name, "current": _admin("vcl.show", name).strip() == _read(path).strip()}


def reload(path=_VCL):
    """
    Compile a VCL, swap it in, and drop the older ones. What is cached stays; app hosts that were
    drained stay drained; a VCL that doesn't compile changes nothing.

    path
        The VCL file.

    Returns ``old`` and ``new`` (names), ``discarded`` (a list of names) and ``seconds``. Raises
    ``CommandExecutionError`` with the compiler's words if the VCL is wrong.

    CLI Example:

    .. code-block:: bash

        salt 'cache*' varnish.reload
    """
    started = time.monotonic()
    old = _active()
    new = time.strftime("saltern-%Y%m%dT%H%M%S-") + f"{time.time_ns() // 1000 % 1000000:06d}"
    _admin("vcl.load", new, path)
    try:
        _take_over(old, new)
        _admin("vcl.use", new)
    except CommandExecutionError:
        _admin("vcl.discard", new)
        raise
    return {
        "old": old,
        "new": new,
        "discarded": _discard_others(new),
        "seconds": round(time.monotonic() - started, 2),
    }


def purge(url, site=None):
    """
    Forget one page, in all its forms.

    url
        A whole URL, or a path with ``site``. With its query, if it has one.
    site
        The site that a path belongs to; needless if there is just one.

    Returns ``{"purged": url}``. Raises ``CommandExecutionError`` if the URL belongs to no site or
    Varnish doesn't answer.

    CLI Example:

    .. code-block:: bash

        salt 'cache*' varnish.purge https://newsroom.lab/article/7/
    """
    host, path = _target(url, site)
    status, reason, _ = _request("PURGE", host, path)
    if status != 200:
        raise CommandExecutionError(f"Varnish answers {status} {reason} to PURGE {host}{path}.")
    return {"purged": host + path}


def ban(pattern, site=None):
    """
    Forget every page of a site whose path matches.

    pattern
        A regular expression for path and query: ``^/article/``. ``.`` is all of the site.
    site
        The site; needless if there is just one.

    Returns ``{"banned": [...]}``, one condition for each name of the site. Raises
    ``CommandExecutionError`` if there is no such site or the pattern isn't one.

    CLI Example:

    .. code-block:: bash

        salt 'cache*' varnish.ban '^/article/'
    """
    try:
        re.compile(str(pattern))
    except re.error as error:
        raise CommandExecutionError(f"{pattern!r} is no regular expression: {error}.") from None
    if re.search(r"[\s\"]", str(pattern)):
        raise CommandExecutionError(
            f"{pattern!r}: paths hold no blanks and no quotes, so the pattern can't either."
        )
    names = [domain.lower() for domain in _site(site)["domains"]]
    for name in names:
        _admin("ban", "obj.http.X-Saltern-Host", "==", name, "&&",
               "obj.http.X-Saltern-Url", "~", str(pattern))  # fmt: skip
    return {"banned": [f"{name} ~ {pattern}" for name in names]}


def backends():
    """
    The app hosts that Varnish asks, and whether they are well.

    Returns a dictionary name (``site__host``) -> ``health`` (healthy or sick), ``drained`` and
    ``probes`` (good looks of those counted).

    CLI Example:

    .. code-block:: bash

        salt 'cache*' varnish.backends
    """
    return _backends(_active())


def drain(host, timeout=30):
    """
    Ask an app host for nothing more; what it works on goes on. It lasts until
    :func:`ready`, through reloads, or until Varnish is restarted.

    host
        The id of the app host.
    timeout
        How many seconds to wait until it works on nothing more for this Varnish; 0 doesn't wait.

    Returns as :func:`backends`, of this host alone. Raises ``CommandExecutionError`` if Varnish
    knows no such host or if requests are left after the time; it stays drained then.

    CLI Example:

    .. code-block:: bash

        salt 'cache*' varnish.drain app1
    """
    found = _set_health(host, "sick")
    deadline = time.monotonic() + timeout
    while timeout and (left := _fetches(host)):
        if time.monotonic() > deadline:
            raise CommandExecutionError(
                f"{host} is drained, but still works on {left} requests after {timeout} s. "
                "Wait longer with timeout=…, or go on without it."
            )
        time.sleep(0.2)
    return found


def ready(host):
    """
    Ask a drained app host again, as soon as its probe finds it well.

    host
        The id of the app host.

    Returns as :func:`backends`, of this host alone. Raises ``CommandExecutionError`` if Varnish
    knows no such host.

    CLI Example:

    .. code-block:: bash

        salt 'cache*' varnish.ready app1
    """
    return _set_health(host, "auto")


def stats():
    """
    How Varnish does, since it was started.

    Returns ``uptime_s``, ``requests``, ``hits``, ``misses``, ``passes``, ``hit_rate`` (0 to 1, of
    what may be cached), ``objects``, ``storage_used`` and ``storage_free`` (bytes),
    ``evicted`` (objects that gave way to others), ``failed_fetches``, ``threads``,
    ``threads_refused``, ``sessions_dropped``, ``backend_requests``.

    CLI Example:

    .. code-block:: bash

        salt 'cache*' varnish.stats
    """
    seen = _counters()
    return {
        "uptime_s": seen["MAIN.uptime"],
        "requests": seen["MAIN.client_req"],
        "hits": seen["MAIN.cache_hit"],
        "misses": seen["MAIN.cache_miss"],
        "passes": seen["MAIN.s_pass"],
        "hit_rate": _rate(seen["MAIN.cache_hit"], seen["MAIN.cache_miss"]),
        "objects": seen["MAIN.n_object"],
        "storage_used": seen["SMA.s0.g_bytes"],
        "storage_free": seen["SMA.s0.g_space"],
        "evicted": seen["MAIN.n_lru_nuked"],
        "failed_fetches": seen["MAIN.fetch_failed"],
        "threads": seen["MAIN.threads"],
        "threads_refused": seen["MAIN.threads_limited"],
        "sessions_dropped": seen["MAIN.sess_dropped"],
        "backend_requests": seen["MAIN.backend_req"],
    }


def hit_rate(seconds=10):
    """
    The share of requests that was answered from memory: of late, and since the start.

    seconds
        How long to look.

    Returns ``now`` and ``since_start``: 0 to 1, or None where nothing was asked; and
    ``requests_per_second``.

    CLI Example:

    .. code-block:: bash

        salt 'cache*' varnish.hit_rate
        salt 'cache*' varnish.hit_rate seconds=60
    """
    before = _counters()
    time.sleep(float(seconds))
    after = _counters()

    def grown(name):
        return after[name] - before[name]

    return {
        "now": _rate(grown("MAIN.cache_hit"), grown("MAIN.cache_miss")),
        "since_start": _rate(after["MAIN.cache_hit"], after["MAIN.cache_miss"]),
        "requests_per_second": round(grown("MAIN.client_req") / float(seconds), 1),
    }


def warm(source, site=None, at_once=4, scheme="http"):
    """
    Ask for pages, so that they are kept before visitors come.

    source
        A list of paths or URLs, a file on this host with one on each line, or the path or URL of
        a sitemap (``/sitemap.xml``; an index of sitemaps is followed).
    site
        The site that paths belong to; needless if there is just one.
    at_once
        How many to ask for at a time.
    scheme
        How visitors come, ``http`` or ``https``: pages are kept for each apart, unless the site
        forces HTTPS.

    Says how far it is in the minion's log and in the event ``saltern/varnish/warm`` every two
    seconds. Returns ``pages``, ``fetched`` (were not kept yet), ``kept`` (were), ``failed`` (a
    list of at most 20 paths with their status) and ``seconds``. Raises ``CommandExecutionError``
    if there is nothing to ask for, or if no page at all could be had.

    CLI Example:

    .. code-block:: bash

        salt 'cache*' varnish.warm /sitemap.xml
        salt 'cache1' varnish.warm '[/, /about/]' site=newsroom
    """
    started = time.monotonic()
    if scheme not in ("http", "https"):
        raise CommandExecutionError(f"scheme is http or https, not {scheme!r}.")
    targets = list(dict.fromkeys(_target(url, site) for url in _urls(source, site, scheme)))
    if not targets:
        raise CommandExecutionError(f"{source!r} names no page.")
    port = _port()  # Salt's own dictionaries are not there in threads
    found = {"miss": 0, "hit": 0}
    failed = []
    told = started
    with concurrent.futures.ThreadPoolExecutor(max(1, int(at_once))) as pool:
        for done, (target, answer) in enumerate(
            zip(targets, pool.map(lambda t: _look(t, scheme, port), targets), strict=False), 1
        ):
            status, cache = answer
            if status < 400:
                found["hit" if cache in ("hit", "stale") else "miss"] += 1
            else:
                failed.append(f"{''.join(target)}: {status}")
            if time.monotonic() - told >= 2:
                told = time.monotonic()
                _tell(done, len(targets), told - started)
    if len(failed) == len(targets):
        raise CommandExecutionError(f"No page could be had; the first: {failed[0]}.")
    return {
        "pages": len(targets),
        "fetched": found["miss"],
        "kept": found["hit"],
        "failed": failed[:20],
        "seconds": round(time.monotonic() - started, 2),
    }


def _tell(done, total, seconds):
    log.info("varnish.warm: %d of %d pages after %d s", done, total, seconds)
    if __opts__.get("master_uri"):
        __salt__["event.send"](
            "saltern/varnish/warm", {"done": done, "total": total, "seconds": int(seconds)}
        )


def _look(target, scheme, port):
    """Ask for a page as an anonymous visitor would; its status and whether it was kept."""
    try:
        status, _, headers = _request("GET", *target, {"X-Forwarded-Proto": scheme}, port=port)
    except CommandExecutionError:
        return 599, ""
    return status, headers.get("X-Cache", "")


def _urls(source, site, scheme):
    """The pages that a source of varnish.warm names."""
    if isinstance(source, (list, tuple)):
        return [str(url) for url in source]
    source = str(source)
    if source.partition("?")[0].endswith(".xml"):
        return _sitemap(source, site, scheme)
    if source.startswith(("http://", "https://")):
        return [source]
    return [line.strip() for line in _read(source).splitlines() if line.strip()]


def _sitemap(url, site, scheme, depth=0):
    """The pages of a sitemap, and of those that it points to."""
    host, path = _target(url, site)
    status, _, body = _request("GET", host, path, {"X-Forwarded-Proto": scheme}, body=True)
    if status != 200:
        raise CommandExecutionError(f"{host}{path} answers {status}.")
    try:
        root = xml.etree.ElementTree.fromstring(body)  # noqa: S314 - the site's own sitemap
    except xml.etree.ElementTree.ParseError as error:
        raise CommandExecutionError(f"{host}{path} is no sitemap: {error}.") from None
    found = [element.text.strip() for element in root.iterfind("./{*}*/{*}loc") if element.text]
    if not root.tag.endswith("sitemapindex") or depth:
        return found
    return [page for part in found for page in _sitemap(part, site, scheme, depth + 1)]


def _target(url, site):
    """The Host header and the path that a URL or a path of a site means."""
    url = str(url)
    if url.startswith("/"):
        return _site(site)["domains"][0], url
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise CommandExecutionError(f"{url!r} is neither a URL (http://…) nor a path (/…).")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return parts.hostname, path


def _site(name):
    names = __salt__["sites.list"]()
    if not name:
        if len(names) != 1:
            raise CommandExecutionError(
                f"Which site? Say site=…, one of {', '.join(names) or 'none'}."
            )
        name = names[0]
    return __salt__["sites.get"](name)


def _port():
    return __salt__["settings.get"]("varnish")["port"]


def _request(method, host, path, headers=None, body=False, port=None):
    """Ask this host's Varnish; status, reason and headers, or the body in place of these."""
    port = port or _port()
    connection = http.client.HTTPConnection(_ADDRESS, port, timeout=70)
    asked = {"Host": host, "Accept-Encoding": "identity" if body else "gzip", **(headers or {})}
    try:
        connection.request(method, path, headers=asked)
        answer = connection.getresponse()
        content = answer.read()
        return answer.status, answer.reason, content if body else answer.headers
    except (OSError, http.client.HTTPException) as error:
        raise CommandExecutionError(
            f"Varnish doesn't answer on {_ADDRESS}:{port} ({error}). See why with: "
            "journalctl -u varnish -n 50"
        ) from None
    finally:
        connection.close()


def _take_over(old, new, patience=5.0):
    """Carry over who is drained, and wait until a new VCL knows the health of those it asks."""
    before = _backends(old)
    after = _backends(new)
    for name in after:
        if name in before and before[name]["drained"]:
            _admin("backend.set_health", f"{new}.{name}", "sick")
    wanted = {name for name in after if before.get(name, {}).get("health") == "healthy"}
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        after = _backends(new)
        if all(after[name]["health"] == "healthy" for name in wanted):
            return
        time.sleep(0.05)


def _discard_others(current):
    """Drop every VCL but the active one; Varnish waits with those that requests still use."""
    others = [vcl["name"] for vcl in _vcls() if vcl["name"] != current]
    for name in others:
        _admin("vcl.discard", name)
    return others


def _active():
    return next(vcl["name"] for vcl in _vcls() if vcl["status"] == "active")


def _vcls():
    """The VCLs that Varnish holds: name and status, without those that it is dropping."""
    return [
        {"name": vcl["name"], "status": vcl["status"]}
        for vcl in _admin_json("vcl.list")
        if isinstance(vcl, dict) and vcl["status"] != "discarded"
    ]


def _backends(vcl):
    """The backends with a probe of a VCL, without its name."""
    found = {}
    for part in _admin_json("backend.list", f"{vcl}.*"):
        if not isinstance(part, dict):
            continue
        for name, state in part.items():
            message = state.get("probe_message")
            if not isinstance(message, list):
                continue
            good, counted, health = (*message, "", "", "")[:3]
            drained = state["admin_health"] == "sick"
            found[name.split(".", 1)[1]] = {
                "health": "sick" if drained else health,
                "drained": drained,
                "probes": f"{good} of {counted}",
            }
    return found


def _ending(host):
    """How the backends of an app host end."""
    return "__" + re.sub("[^A-Za-z0-9]", "_", str(host))


def _fetches(host):
    """How many requests an app host works on for this Varnish, whichever VCL asked for them."""
    ending = f"{_ending(host)}.conn"
    counted = _counters().items()
    return sum(n for name, n in counted if name.startswith("VBE.") and name.endswith(ending))


def _set_health(host, state):
    ending = _ending(host)
    vcl = _active()
    names = [name for name in _backends(vcl) if name.endswith(ending)]
    if not names:
        known = sorted({name.rpartition("__")[2] for name in _backends(vcl)})
        near = difflib.get_close_matches(str(host), known, 1)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise CommandExecutionError(
            f"Varnish asks no host {host!r}. {hint}It asks: {', '.join(known) or 'none'}."
        )
    for name in names:
        _admin("backend.set_health", f"{vcl}.{name}", state)
    after = _backends(vcl)
    return {name: after[name] for name in names}


def _rate(hits, misses):
    return round(hits / (hits + misses), 4) if hits + misses else None


def _counters():
    """Varnish's counters: name -> number."""
    seen = json.loads(_run("varnishstat", "-1", "-j"))
    seen = seen.get("counters", seen)
    return {name: entry["value"] for name, entry in seen.items() if isinstance(entry, dict)}


def _admin_json(command, *arguments):
    """What varnishadm answers as JSON, without its first two fields: version and command."""
    return json.loads(_admin(command, "-j", *arguments))[2:]


def _admin(*command):
    # A varnishd that was just started on a busy host takes longer than varnishadm's own 5 s.
    return _run("varnishadm", "-t", "30", *command)


def _run(*command):
    """Run one of Varnish's own commands. Raises with what it says where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        raise CommandExecutionError(f"Varnish isn't installed here: no {command[0]}.") from None
    except subprocess.TimeoutExpired:
        raise CommandExecutionError(f"{command[0]} didn't answer within 60 s.") from None
    if done.returncode:
        words = (done.stderr + done.stdout).strip() or f"exit status {done.returncode}"
        raise CommandExecutionError(f"{' '.join(command)} failed: {words}")
    return done.stdout


def _read(path):
    try:
        with open(path) as file:
            return file.read()
    except OSError as error:
        raise CommandExecutionError(f"{path} can't be read: {error.strerror}.") from None
