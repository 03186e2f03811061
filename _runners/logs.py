"""
The farm's logs, from the master: one request through all layers, or a host as it writes.
"""

import functools
import time

import salt.client
from salt.exceptions import CommandExecutionError


def _in_a_sentence(function):
    """Salt prints a traceback for whatever a runner raises: an error is told instead."""

    @functools.wraps(function)
    def told(*arguments, **options):
        try:
            return function(*arguments, **options)
        except CommandExecutionError as error:
            return {"comment": str(error), "retcode": 1}

    return told


@_in_a_sentence
def request(id, older=False, full=False):  # noqa: A002 - the word that everybody uses for it
    """
    Follow one request through the whole farm: HAProxy, Varnish, nginx, uWSGI, Django.

    id
        Its id: the header ``X-Request-ID`` of the answer.
    older
        Look into what was rotated and packed, too. That takes long.
    full
        Show whole messages instead of their first 120 characters.

    Returns a line for each line that was logged, in the order of the road: time, host, layer,
    status, milliseconds spent there and message. Fails with a sentence if there is no
    log host, none answers, or none knows the request.

    CLI Example:

    .. code-block:: bash

        salt-run logs.request 5f0c6c9e-3c53-4f0e-9d1e-0a4a2b6f8f4e
    """
    told = _ask("logs.request", str(id), older=older)
    lines = {(one["time"], one["host"], one["text"]): one for found in told for one in found}
    if not lines:
        raise CommandExecutionError(
            f"No layer logged {id}. A line takes a second to arrive; what is older than a day is "
            "looked for with older=True; pages from the accelerator's memory pass HAProxy alone, "
            "and with haproxy.log: misses leave no line."
        )
    return [_shown(line, None if full else 120) for line in lines.values()]


@_in_a_sentence
def follow(host="*", program="*", lines=20, seconds=0):
    """
    Print what a host writes, as it writes it, until Ctrl-C.

    host, program
        Which ones; patterns are allowed.
    lines
        How many lines to begin with.
    seconds
        End after as many seconds; 0 goes on.

    Returns nothing. Fails with a sentence if there is no log host or it keeps nothing
    of such a host and program.

    CLI Example:

    .. code-block:: bash

        salt-run logs.follow app1
        salt-run logs.follow 'app*' nginx lines=50
    """
    marks, end = None, time.monotonic() + float(seconds)
    while True:
        told = _ask("logs.tail", host, program, lines=lines, marks=marks)[0]
        for line in told["lines"]:
            print(line, flush=True)
        marks = told["marks"]
        if seconds and time.monotonic() > end:
            return
        time.sleep(1)


def _ask(function, *arguments, **options):
    """What the log hosts that answer return. An error of one is an error where all have one."""
    keepers = __salt__["inventory.hosts"]("log")
    if not keepers:
        raise CommandExecutionError(
            "No host has the role `log`: what a host logs is in its own journal (docs/rsyslog.md)."
        )
    client = salt.client.get_local_client(mopts=__opts__)
    said = client.cmd(
        keepers, function, arguments, tgt_type="list", kwarg=options, timeout=30, full_return=True
    )
    answers = [one for one in said.values() if isinstance(one, dict)]
    good = [one["ret"] for one in answers if not one.get("retcode")]
    if good:
        return good
    why = "; ".join(str(one["ret"]) for one in answers) or "it doesn't answer"
    raise CommandExecutionError(f"{', '.join(keepers)}: {why}")


def _shown(line, width):
    took = "" if line["ms"] is None else f"{line['ms']:.0f} ms"
    text = line["text"] if width is None else line["text"][:width]
    clock = line["time"].partition("T")[2][:12]
    return (
        f"{clock}  {line['host']:10} {line['layer']:8} {line['status'] or '':4} {took:>8}  {text}"
    )
