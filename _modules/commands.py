"""
Running a site's commands: as one of its own users, with a clean environment, never for ever.

``deploy`` and ``release`` run git, pip and the site's own code through this, so that there is one
place where privileges are dropped and secrets are kept out of what is reported.
"""

import contextlib
import os
import pathlib
import shlex
import signal
import subprocess

from salt.exceptions import CommandExecutionError

# What of the minion's own environment reaches the tools that download: proxies, certificates,
# package indexes. Set it in the minion's unit.
_PASSED_ON = ("PIP_", "UV_", "SSL_CERT_", "REQUESTS_CA_", "GIT_SSL_")
_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "all_proxy")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Lines of a failed command that are worth showing.
_LAST_LINES = 25
# The niceness of a build: the site itself goes first.
_BUILD_NICE = 15


def run(
    site,
    command,
    build=False,
    env=None,
    cwd=None,
    stdin=None,
    umask=0o027,
    timeout=1800,
    task=None,
    answer=False,
):
    """
    Run a command for a site, without root's rights.

    site
        The site's name.
    command
        A list: the program and its arguments. They show in the process list: no secrets here.
    build
        Run as the user that owns the site's code (and may download) instead of the user that the
        site runs as.
    env
        Environment variables, beside the few that every command gets. Secrets belong here.
    cwd
        Folder to run in; the site's own if not given.
    stdin
        Text that the command reads.
    umask
        Permissions that new files don't get.
    timeout
        Seconds after which the command and all that it started are killed; ``None`` for never.
    task
        What the command does, for the error message; the command itself if not given.
    answer
        What it prints is an answer to be read by a program: warnings stay out of it.

    Returns what it printed, standard output and errors together (``answer``: standard output
    alone), without the site's secrets.
    Raises ``CommandExecutionError`` with its last lines if it fails or takes too long. It dies
    with the process that called it.

    CLI Example:

    .. code-block:: bash

        salt 'app1' commands.run newsroom '[git, --version]' build=True
    """
    command = [str(part) for part in command]
    task = task or shlex.join(command)
    user = __salt__["sites.builder" if build else "sites.user"](site)
    paths = __salt__["sites.paths"](site)
    home = f"{paths['root']}/build" if build else paths["shared"]
    # setpriv's death signal: an interrupted ship leaves no command behind that goes on writing.
    drop = ["setpriv", f"--reuid={user}", f"--regid={__salt__['sites.user'](site)}"]
    drop += ["--clear-groups", "--no-new-privs", "--pdeathsig=KILL", "--"]
    if build:
        drop = [*yielding(), *drop]
    try:
        process = subprocess.Popen(
            drop + command,
            env=_environment(user, home, build) | (env or {}),
            cwd=cwd or paths["root"],
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if answer else subprocess.STDOUT,
            text=True,
            errors="replace",
            umask=umask,
            start_new_session=True,
        )
    except OSError as error:
        raise CommandExecutionError(f"{task}: {error}") from error
    if build:
        _yield_to_others(process.pid)
    try:
        output, warnings = process.communicate(stdin, timeout=timeout)
    except subprocess.TimeoutExpired:
        _kill(process)
        output, _ = process.communicate()
        raise CommandExecutionError(
            f"{task} took more than {timeout:g} s and was stopped. "
            f"Its last lines:\n{_last(redact(site, output))}"
        ) from None
    except BaseException:
        _kill(process)
        raise
    output = redact(site, output)
    if process.returncode:
        output += redact(site, warnings or "")
        raise CommandExecutionError(
            f"{task} failed with exit code {process.returncode}:\n{_last(output)}"
        )
    return output


def niceness():
    """
    The niceness of what a ship builds or loads: the site itself goes first.

    Returns a number.

    CLI Example:

    .. code-block:: bash

        salt 'app1' commands.niceness
    """
    return _BUILD_NICE


def yielding():
    """
    What gives a command that niceness, whatever the niceness of who starts it.

    Returns the words to put before the command, a list.

    CLI Example:

    .. code-block:: bash

        salt 'app1' commands.yielding
    """
    return ["nice", "-n", str(_BUILD_NICE - os.getpriority(os.PRIO_PROCESS, 0))]


def redact(site, text):
    """
    A text without the secrets of a site.

    site
        The site's name.
    text
        Any text, for example what a command printed.

    Returns the text; each secret in it is replaced by ``**********``.

    CLI Example:

    .. code-block:: bash

        salt 'app1' commands.redact newsroom 'some text'
    """
    for secret in sorted(_secrets(site), key=len, reverse=True):
        text = text.replace(secret, "**********")
    return text


def _secrets(site):
    """Every text below the pillar's ``secrets`` and every value that contains one."""
    found = set()

    def gather(value):
        if isinstance(value, dict):
            for inner in value.values():
                gather(inner)
        elif isinstance(value, list):
            for inner in value:
                gather(inner)
        elif isinstance(value, str) and len(value) >= 6:
            found.add(value)

    gather(__pillar__.get("secrets") or {})
    multiline = {line for value in found for line in value.splitlines() if len(line) >= 16}
    return found | multiline


def _environment(user, home, build):
    env = {
        "PATH": _PATH,
        "HOME": home,
        "USER": user,
        "LOGNAME": user,
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
    }
    if build:
        env |= {
            name: value
            for name, value in os.environ.items()
            if name.startswith(_PASSED_ON) or name.lower() in _PROXIES
        }
    return env


def _yield_to_others(session):
    """
    Let a session of processes work only while others don't want to. Where the kernel shares the
    processors out between sessions (autogroup, Debian's default), the niceness of a process counts
    within its own session only, and the session has one of its own.
    """
    with contextlib.suppress(OSError):  # a kernel without, or a command that has ended already
        pathlib.Path(f"/proc/{session}/autogroup").write_text(str(_BUILD_NICE), encoding="ascii")


def _kill(process):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _last(output):
    return "\n".join(output.rstrip().splitlines()[-_LAST_LINES:])
