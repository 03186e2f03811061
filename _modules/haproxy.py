"""
Talk to the running HAProxy: who is in the pool, with what weight, and what comes and goes.

Everything here works on the daemon itself, through its socket, and lasts until it is undone: a
reload keeps it, the inventory and the pillar are not touched.
"""

import base64
import csv
import difflib
import hashlib
import io
import json
import socket
import time

from salt.exceptions import CommandExecutionError

_SOCKET = "/run/haproxy/admin.sock"


def status(backend=None):
    """
    Every server that HAProxy sends requests to, and how it is.

    backend
        Only this backend: ``accelerators``, ``site_<site>`` or ``old_farm``. All if not given.

    Returns a dictionary backend -> server -> ``state`` (UP, DOWN, DRAIN, MAINT, with HAProxy's
    count of checks while it changes), ``weight``, ``requests`` in the last second, ``sessions``
    at work now, ``queued`` requests, ``errors`` since the start, ``since`` (seconds in this
    state) and ``check`` (the last health check). Raises ``CommandExecutionError`` if HAProxy
    doesn't run or has no such backend.

    CLI Example:

    .. code-block:: bash

        salt 'lb*' haproxy.status
    """
    found = {}
    for row in _servers():
        found.setdefault(row["pxname"], {})[row["svname"]] = {
            "state": row["status"],
            "weight": _number(row["uweight"]),
            "requests": _number(row["rate"]),
            "sessions": _number(row["scur"]),
            "queued": _number(row["qcur"]),
            "errors": sum(_number(row[key]) for key in ("econ", "eresp", "hrsp_5xx")),
            "since": _number(row["lastchg"]),
            "check": row["last_chk"] or row["check_status"],
        }
    if not backend:
        return found
    if backend not in found:
        raise CommandExecutionError(f"There is no backend {backend!r}. {_known(found, backend)}")
    return {backend: found[backend]}


def drain(server, timeout=30):
    """
    Take a server out of the pool: it gets no new requests, those it works on go on.

    server
        The id of the host.
    timeout
        How many seconds to wait until it has no request left; 0 doesn't wait.

    Returns as :func:`status`, of this server alone. Raises ``CommandExecutionError`` if HAProxy
    knows no such server or if requests are left after the time; it stays drained then. An app
    host is asked by the accelerators too: ``varnish.drain`` on these.

    CLI Example:

    .. code-block:: bash

        salt 'lb*' haproxy.drain app1
    """
    places = _places(server)
    _set(places, "state drain")
    deadline = time.monotonic() + timeout
    while timeout and _sessions(server):
        if time.monotonic() > deadline:
            raise CommandExecutionError(
                f"{server} is drained, but still works on {_sessions(server)} requests after "
                f"{timeout} s. Wait longer with timeout=…, or go on without it."
            )
        time.sleep(0.2)
    return _of(server)


def ready(server):
    """
    Put a drained server back into the pool. With a slow start its share grows step by step.

    server
        The id of the host.

    Returns as :func:`status`, of this server alone. Raises ``CommandExecutionError`` if HAProxy
    knows no such server.

    CLI Example:

    .. code-block:: bash

        salt 'lb*' haproxy.ready app1
    """
    _set(_places(server), "state ready")
    return _of(server)


def weight(server, weight):
    """
    Give a server a larger or smaller share of the requests.

    server
        The id of the host.
    weight
        0 to 256, beside the 100 that servers have where ``haproxy.weights`` says nothing.

    Returns as :func:`status`, of this server alone. Raises ``CommandExecutionError`` if HAProxy
    knows no such server or the weight is out of range.

    CLI Example:

    .. code-block:: bash

        salt 'lb*' haproxy.weight cache1 25
    """
    if not str(weight).isdigit() or not 0 <= int(weight) <= 256:
        raise CommandExecutionError(f"A weight is a number from 0 to 256, not {weight!r}.")
    _set(_places(server), f"weight {int(weight)}")
    return _of(server)


def acme_thumbprint():
    """
    The thumbprint of the ACME account's key (RFC 7638): with it every balancer can prove to the
    ACME server that the account's holder runs this host.

    Returns the thumbprint, or an empty string if no site of this environment gets its certificate
    by ACME. Raises ``CommandExecutionError`` if the key isn't an RSA key in PEM form.

    CLI Example:

    .. code-block:: bash

        salt 'lb1' haproxy.acme_thumbprint
    """
    sites = (__salt__["sites.get"](name) for name in __salt__["sites.list"]())
    if not any(site["tls"]["certificate"] == "acme" for site in sites):
        return ""
    pem = ((__pillar__.get("secrets") or {}).get("haproxy") or {}).get("acme_account_key")
    if not pem:
        raise CommandExecutionError(
            "A site has `tls: {certificate: acme}`, but secrets:haproxy:acme_account_key isn't in "
            "this host's pillar: make one with `openssl genrsa 4096` and add it to "
            "secrets/haproxy.sls of the environment."
        )
    return _thumbprint(pem)


def _thumbprint(pem):
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        numbers = load_pem_private_key(pem.encode(), None).public_key().public_numbers()
        jwk = {"e": _base64(_bytes(numbers.e)), "kty": "RSA", "n": _base64(_bytes(numbers.n))}
    except (ValueError, TypeError, AttributeError):
        raise CommandExecutionError(
            "secrets:haproxy:acme_account_key isn't an RSA key in PEM form without a passphrase: "
            "make one with `openssl genrsa 4096`."
        ) from None
    canonical = json.dumps(jwk, sort_keys=True, separators=(",", ":"))
    return _base64(hashlib.sha256(canonical.encode()).digest())


def _bytes(number):
    return number.to_bytes((number.bit_length() + 7) // 8, "big")


def _base64(data):
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _of(server):
    found = {backend: servers[server] for backend, servers in status().items() if server in servers}
    return {backend: {server: state} for backend, state in found.items()}


def _places(server):
    """The backends that have this server, as HAProxy names them: ``backend/server``."""
    rows = _servers()
    found = [f"{row['pxname']}/{server}" for row in rows if row["svname"] == server]
    if not found:
        known = sorted({row["svname"] for row in rows})
        raise CommandExecutionError(f"HAProxy has no server {server!r}. {_known(known, server)}")
    return found


def _known(names, wanted):
    near = difflib.get_close_matches(str(wanted), names, 1)
    hint = f"Did you mean {near[0]}? " if near else ""
    return f"{hint}There are: {', '.join(sorted(names))}."


def _sessions(server):
    return sum(_number(row["scur"]) for row in _servers() if row["svname"] == server)


def _set(places, what):
    for place in places:
        answer = _ask(f"set server {place} {what}")
        if answer.strip():
            raise CommandExecutionError(f"HAProxy refuses to set {place} {what}: {answer.strip()}")


def _servers():
    """The rows of HAProxy's statistics that are servers."""
    rows = csv.DictReader(io.StringIO(_ask("show stat -1 4 -1").removeprefix("# ")))
    return list(rows)


def _number(text):
    return int(text or 0)


def _ask(command):
    """What HAProxy answers on its socket."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(10)
            connection.connect(_SOCKET)
            connection.sendall(f"{command}\n".encode())
            return b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    except OSError as error:
        raise CommandExecutionError(
            f"HAProxy doesn't answer on {_SOCKET} ({error}). See why with: "
            "journalctl -u haproxy -n 50"
        ) from None
