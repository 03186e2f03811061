"""
What the hosts with the role ``log`` keep: every line of every host of the farm.

Lines stand in ``/var/log/farm/<host>/<program>.log`` (``rsyslog.folder``), as
``<time> <host> <program>[<process>]: <message>``. ``salt-run logs.request`` and ``logs.follow`` ask
these functions.
"""

import json
import pathlib
import re
import subprocess

from salt.exceptions import CommandExecutionError

# The layers that log a request under its id, in the order of its road.
ROAD = ["haproxy", "varnish", "nginx", "uwsgi", "django", "celery"]
_LINE = re.compile(r"(?P<time>\S+) (?P<host>\S+) (?P<program>[^\s\[]+)\[[^\]]*\]: ?(?P<text>.*)")
_REQUEST = re.compile(r"[A-Za-z0-9._-]{8,64}")
# By the field that holds it: how many milliseconds one of it is.
_TIMES = {"total_ms": 1, "ms": 1, "seconds": 1000, "first_byte_s": 1000}


def request(id, older=False):  # noqa: A002 - the word that everybody uses for it
    """
    What all layers of the farm logged of one request.

    id
        Its id: the header ``X-Request-ID`` of the answer.
    older
        Look into what was rotated and packed, too. That takes long.

    Returns a list of dictionaries in the order of the road and then of time: ``time``, ``host``,
    ``layer``, ``status``, ``ms`` (what it took there, waiting included; ``None`` where a line
    doesn't say it) and ``text``. It is empty if nothing was logged. Raises
    ``CommandExecutionError`` if this host keeps no logs, or for what can't be an id.

    CLI Example:

    .. code-block:: bash

        salt 'log*' logs.request 5f0c6c9e-3c53-4f0e-9d1e-0a4a2b6f8f4e
    """
    id = str(id)  # noqa: A001 - as above
    if not _REQUEST.fullmatch(id):
        raise CommandExecutionError(
            f"{id!r} is no request id: it has 8 to 64 letters, digits, dots and dashes, as in the "
            "header X-Request-ID of an answer."
        )
    folder = _folder()
    lines = _found(["grep", "-rhF", "--include=*.log", "--", id, str(folder)])
    if older:
        packed = sorted(map(str, folder.glob("*/*.log-*")))
        lines += _found(["zgrep", "-hF", "--", id, *packed]) if packed else []
    found = [_parsed(line) for line in lines]
    return sorted(filter(None, found), key=lambda line: (_rank(line["layer"]), line["time"]))


def tail(host="*", program="*", lines=20, marks=None):
    """
    The last lines of a host, or what came after them.

    host, program
        Which ones; patterns are allowed.
    lines
        How many of the newest lines.
    marks
        The ``marks`` of an earlier call: then whatever was written since.

    Returns ``lines``, sorted by time, and ``marks``. Raises ``CommandExecutionError`` if this host
    keeps no logs, or none of such a host and program.

    CLI Example:

    .. code-block:: bash

        salt 'log*' logs.tail app1 nginx
    """
    folder = _folder()
    files = sorted(folder.glob(f"{_part(host)}/{_part(program)}.log"))
    if not files:
        kept = ", ".join(sorted(path.name for path in folder.glob("*/"))) or "none"
        raise CommandExecutionError(f"{folder} has no {host}/{program}.log. Hosts: {kept}.")
    found, ends = [], {}
    for path in files:
        begin = (marks or {}).get(str(path), 0) if marks is not None else None
        new, ends[str(path)] = _read(path, begin, int(lines))
        found += new
    found.sort(key=lambda line: line.partition(" ")[0])
    return {"lines": found if marks is not None else found[-int(lines) :], "marks": ends}


def _folder():
    """Where this host keeps the farm's logs."""
    if "log" not in __salt__["inventory.roles"]():
        raise CommandExecutionError(
            f"{__opts__['id']} keeps no logs: it hasn't the role `log`. "
            "Ask from the master: salt-run logs.request <id>"
        )
    return pathlib.Path(__salt__["settings.get"]("rsyslog")["folder"])


def _part(pattern):
    """A pattern for one part of a path; what would leave the folder is refused."""
    if "/" in str(pattern) or str(pattern) in ("", ".", "..", "**"):
        raise CommandExecutionError(f"{pattern!r} is no name of a host or a program.")
    return str(pattern)


def _found(command):
    """The lines that a search printed; to find none is no failure."""
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode > 1 and not done.stdout:
        raise CommandExecutionError(f"{command[0]}: {done.stderr.strip()[:500]}")
    return done.stdout.splitlines()


def _read(path, begin, lines):
    """Whole lines from a place in a file (or its last ones), and the place where they end."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if begin is None:
            begin = max(0, size - lines * 1000)
        elif begin > size:
            begin = 0  # rotated meanwhile
        file.seek(begin)
        data = file.read(1 << 20)
    whole = data[: data.rfind(b"\n") + 1]
    return whole.decode(errors="replace").splitlines()[-lines:], begin + len(whole)


def _parsed(line):
    """A line of a log as :func:`request` returns it; None for one that isn't like that."""
    found = _LINE.fullmatch(line)
    if not found:
        return None
    told = _told(found["text"])
    return {
        "time": found["time"],
        "host": found["host"],
        "layer": "django" if found["program"] == "uwsgi" and not told else found["program"],
        "status": told.get("status"),
        "ms": next(
            (round(float(told[n]) * f, 1) for n, f in _TIMES.items() if _is_number(told.get(n))),
            None,
        ),
        "text": found["text"],
    }


def _told(text):
    """The fields of a message that is JSON; none for others."""
    if not text.startswith("{"):
        return {}
    try:
        told = json.loads(text)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def _is_number(value):
    return re.fullmatch(r"[0-9]+(\.[0-9]+)?", str(value)) is not None


def _rank(layer):
    return ROAD.index(layer) if layer in ROAD else len(ROAD)
