"""Running commands, and the errors that end the lab with a sentence."""

import subprocess

from tests.lab import output


class LabError(Exception):
    """Something failed: its text is one sentence for the person at the terminal. Exit code 1."""

    code = 1


class UsageError(LabError):
    """What was asked can't be done here; nothing was begun. Exit code 2."""

    code = 2


def run(*command, stdin=None, check=True, secret=False):
    """
    Run a command, log what it says, return it.

    command
        The program and its arguments.
    stdin
        Text that it is given.
    check
        Whether a failure raises :class:`LabError`.
    secret
        Whether what it says stays out of the log.

    Returns a ``CompletedProcess`` with text in ``stdout`` and ``stderr``.
    """
    command = [str(word) for word in command]
    output.log("$ " + " ".join(command))
    given = {"input": stdin} if stdin is not None else {"stdin": subprocess.DEVNULL}
    done = subprocess.run(command, capture_output=True, text=True, check=False, **given)
    if not secret:
        output.log(done.stdout)
        output.log(done.stderr)
    if check and done.returncode:
        raise LabError(explain(command, done.returncode, done.stderr or done.stdout))
    return done


def stream(*command, env=None):
    """Run a long command with its output going straight to the log. Raises on failure."""
    command = [str(word) for word in command]
    output.log("$ " + " ".join(command))
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output.log_file(),
        stderr=subprocess.STDOUT,
        env=env,
        check=False,
    )
    if done.returncode:
        raise LabError(explain(command, done.returncode, ""))


def remove(folder):
    """Remove a folder, if it is there, without following what is mounted in it."""
    run("rm", "-rf", "--one-file-system", folder)


def explain(command, code, said):
    """One sentence about a command that failed."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    last = f": {lines[-1]}" if lines else ""
    return f"{command[0]} failed with exit code {code}{last}. Full output: {output.log_name()}"
