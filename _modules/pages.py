"""
The sites' own error pages, for the balancers and accelerators in front of the app hosts.

A release renders its flat pages on the app hosts. nginx there shows them, and gives them to the
hosts in front (``/.saltern/pages/``), which show them when no app host answers. Where a site has no
page of its own, they show the formula's.
"""

import http.client
import pathlib
import re
import subprocess
import tempfile
import time

from salt.exceptions import CommandExecutionError

# What a release may render: salt/django/files/release.py.
STATUSES = (404, 500, 502, 503, 504)
# Bytes. HAProxy keeps a page with its head in one buffer of 16 kB, and needs some of that itself.
LARGEST = 12 * 1024
# Seconds for one page, and for all that is asked of a site's hosts.
_TIMEOUT, _PATIENCE = 3, 15
_HAPROXY = pathlib.Path("/etc/haproxy/pages")
_VARNISH = pathlib.Path("/etc/varnish/pages")


def bring(site=None, daemon=None, test=False):
    """
    Bring the sites' own error pages from a live app host to what stands in front of it here. New
    pages are checked by the daemon before they replace the old ones; it is reloaded if there are
    any.

    site
        Only this site; all if not given.
    daemon
        Only ``haproxy`` or ``varnish``; what this host's roles bring if not given.
    test
        Change nothing.

    Returns ``changed``, a list of files, and ``notes``, a list of sentences: a site that no app
    host has live keeps the pages it has here, and a page that can't be taken is replaced by the
    formula's. Raises ``CommandExecutionError`` if there is no such site or no such daemon on this
    host, or if the daemon refuses the pages: it has the old ones then.

    CLI Example:

    .. code-block:: bash

        salt -C 'lb* or cache*' pages.bring
    """
    daemons = _daemons(daemon)
    found = {name: fetch(name) for name in _sites(site)}
    changed = []
    for name in daemons:
        folder, wanted_of, check, reload = _DAEMONS[name]
        if not folder.is_dir():
            if test:
                continue
            raise CommandExecutionError(f"{folder} isn't there yet: state.apply makes it.")
        wanted = {}
        for of_site, own in found.items():
            if own["host"]:
                wanted.update(wanted_of(of_site, own["pages"]))
        new = {path: text for path, text in wanted.items() if text != _read(path)}
        if new and not test:
            _replace(folder, new, check, reload)
        changed += sorted(str(path) for path in new)
    return {"changed": changed, "notes": [note for own in found.values() for note in own["notes"]]}


def fetch(site):
    """
    Ask the app hosts for a site's own error pages, one after the other until one has a release of
    the site live.

    site
        The site's name.

    Returns ``host``, the id of the one that answered (``None`` if none did), ``pages``, a
    dictionary from status to HTML, and ``notes``, a list of sentences.

    CLI Example:

    .. code-block:: bash

        salt 'lb1' pages.fetch newsroom
    """
    domain = __salt__["sites.get"](site)["domains"][0]
    port = __salt__["settings.get"]("nginx")["port"]
    deadline = time.monotonic() + _PATIENCE
    for host in __salt__["inventory.peers"]("app"):
        if time.monotonic() > deadline:
            break
        try:
            answers = {s: _ask(host["address"], port, domain, s) for s in STATUSES}
        except (OSError, http.client.HTTPException):
            continue
        if any(status not in (200, 404) for status, _ in answers.values()):
            continue  # nothing is live there
        pages, notes = {}, []
        for number, (status, content) in answers.items():
            wrong = _wrong(content) if status == 200 else None
            if wrong:
                notes.append(f"{number}.html of {site} {wrong}: ours is shown in its place.")
            elif status == 200:
                pages[number] = content.decode()
        return {"host": host["id"], "pages": pages, "notes": notes}
    note = f"No app host has a release of {site} live and answers: its pages stay as they are."
    return {"host": None, "pages": {}, "notes": [note]}


def _ask(address, port, domain, number):
    """Status and content of a page, of which no more is read than would be taken."""
    connection = http.client.HTTPConnection(address, port, timeout=_TIMEOUT)
    try:
        connection.request("GET", f"/.saltern/pages/{number}.html", headers={"Host": domain})
        answer = connection.getresponse()
        return answer.status, answer.read(LARGEST + 1)
    finally:
        connection.close()


def _wrong(content):
    """What keeps a page from being taken, or nothing."""
    if len(content) > LARGEST:
        return f"is larger than {LARGEST} bytes"
    if not content.strip():
        return "is empty"
    try:
        return "holds a NUL character" if "\0" in content.decode() else None
    except UnicodeDecodeError:
        return "isn't UTF-8"


def _sites(site):
    names = __salt__["sites.list"]()
    if site is None:
        return names
    if site not in names:
        raise CommandExecutionError(
            f"There is no site {site!r}. There are: {', '.join(names) or 'none'}."
        )
    return [site]


def _daemons(daemon):
    here = [name for name in __salt__["inventory.services"]() if name in _DAEMONS]
    if not here:
        raise CommandExecutionError(
            "This host is neither a load balancer nor an accelerator: it shows no pages."
        )
    if daemon not in (None, *here):
        raise CommandExecutionError(f"daemon={daemon!r}: here it is {' or '.join(here)}.")
    return [daemon] if daemon else here


def _replace(folder, files, check, reload):
    """Put new files in the place of old ones and reload the daemon; as it was if that fails."""
    before = {path: _read(path) for path in files}
    _put(folder, files, check)
    try:
        reload()
    except CommandExecutionError:
        _put(folder, {path: text for path, text in before.items() if text is not None})
        raise


def _put(folder, files, check=None):
    """Write files beside their folder, have them checked, and move them there."""
    with tempfile.TemporaryDirectory(prefix=".new-", dir=folder.parent) as new:
        pathlib.Path(new).chmod(0o711)  # Varnish's compiler doesn't run as root
        drafts = {path: pathlib.Path(new, path.name) for path in files}
        for path, draft in drafts.items():
            draft.write_text(files[path], encoding="utf-8")
            draft.chmod(0o644)
        if check:
            check(pathlib.Path(new), drafts.values())
        for path, draft in drafts.items():
            draft.replace(path)


def _of_haproxy(site, pages):
    """A site's files for HAProxy: whole answers, with the head that the formula's have."""
    wanted = {}
    for status in (500, 502, 503, 504):
        ours = (_HAPROXY.parent / "errors" / f"saltern-{status}.http").read_text(encoding="utf-8")
        head = ours.partition("\n\n")[0]
        page = pages.get(status)
        wanted[_HAPROXY / f"{site}-{status}.http"] = f"{head}\n\n{page}" if page else ours
    return wanted


def _check_haproxy(folder, drafts):
    named = [f" errorfile {draft.stem.rpartition('-')[2]} {draft}\n" for draft in drafts]
    config = folder / "check.cfg"
    config.write_text(
        "frontend check\n mode http\n timeout client 1s\n bind 127.0.0.1:1\n" + "".join(named)
    )
    _run("haproxy", "-c", "-f", str(config))


def _reload_haproxy():
    if not __salt__["service.reload"]("haproxy"):
        raise CommandExecutionError(
            "HAProxy could not be reloaded. See why with: journalctl -u haproxy -n 50"
        )


def _of_varnish(site, pages):
    """A site's file for Varnish: the subroutines that the VCL calls before it shows ours."""
    label = _label(site)
    failed = _shown("beresp", pages.get(503))
    synth = _shown("resp", pages.get(404), 404) + _shown("resp", pages.get(503), 503)
    text = (
        "# Managed by Saltern: _modules/pages.py. The site's own pages, as it was shipped last.\n"
        f"sub {label}_failed {{\n{failed}}}\n"
        f"sub {label}_synth {{\n{synth}}}\n"
    )
    return {_VARNISH / f"{site}.vcl": text}


def _shown(answer, page, status=None):
    """VCL that shows a page, if there is one, in an answer, if it has a status."""
    if not page:
        return ""
    # A text ends at `"}`: one inside is written as two texts.
    show = '    set {}.body = {{"{}"}};\n    return (deliver);\n'.format(
        answer, page.replace('"}', '""} + {"}')
    )
    return f"    if ({answer}.status == {status}) {{\n{show}    }}\n" if status else show


def _check_varnish(folder, drafts):
    lines = ["vcl 4.1;", "backend nobody none;"]
    for draft in drafts:
        label = _label(draft.stem)
        lines += [
            f'include "{draft}";',
            f"sub vcl_backend_error {{ call {label}_failed; }}",
            f"sub vcl_synth {{ call {label}_synth; }}",
        ]
    vcl = folder / "check"
    vcl.write_text("\n".join(lines) + "\n")
    vcl.chmod(0o644)
    _run("varnishd", "-n", "/run/saltern-vcl", "-C", "-f", str(vcl))


def _reload_varnish():
    __salt__["varnish.reload"]()


def _label(site):
    """A site's name as the VCL has it."""
    return re.sub("[^A-Za-z0-9]", "_", site)


# For each: where its pages lie, a site's files, their check, what puts them in force.
_DAEMONS = {
    "haproxy": (_HAPROXY, _of_haproxy, _check_haproxy, _reload_haproxy),
    "varnish": (_VARNISH, _of_varnish, _check_varnish, _reload_varnish),
}


def _run(*command):
    """Run a daemon's own check. Raises with what it says where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        raise CommandExecutionError(f"There is no {command[0]} here: state.apply first.") from None
    except subprocess.TimeoutExpired:
        raise CommandExecutionError(f"{command[0]} didn't answer within 60 s.") from None
    if done.returncode:
        words = (done.stderr + done.stdout).strip() or f"exit status {done.returncode}"
        raise CommandExecutionError(f"{command[0]} refuses the sites' pages: {words}")


def _read(path):
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
