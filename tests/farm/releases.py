"""Commits that only a test or a measurement wants, in the lab's repository of the example site."""

import time

from tests.lab.salt import REPOSITORY

# Branches below this are ours.
PREFIX = "refs/heads/trial/"


def commit(master, name, files):
    """
    Commit changed files on top of the site as the lab has published it.

    master
        The lab's master, where the repository is.
    name
        What it is; the branch below ``trial/`` is named so, too.
    files
        Text by path; ``None`` deletes a file.

    Returns the SHA. Each call makes another commit, so each ships as a release of its own.
    """
    branch = PREFIX + name.replace(" ", "-")
    stream = f"commit {branch}\n"
    stream += f"committer trial <trial@localhost> {int(time.time())} +0000\n"
    stream += _data(f"{name} {time.time_ns()}") + "from refs/heads/main^0\n"
    for path, text in files.items():
        stream += f"D {path}\n" if text is None else f"M 100644 inline {path}\n{_data(text)}"
    _git(master, "fast-import", "--quiet", "--force", stdin=stream)
    return _git(master, "rev-parse", branch).strip()


def published(master, path):
    """The text of a file of the site as it is published."""
    return _git(master, "show", f"main:{path}")


def last_migration(master):
    """The name of the newest migration of ``articles``."""
    names = _git(master, "ls-tree", "--name-only", "main", "articles/migrations/").split()
    found = sorted(name.rpartition("/")[2].removesuffix(".py") for name in names)
    return [name for name in found if name[0].isdigit()][-1]


def forget(master):
    """Take all these branches away."""
    refs = _git(master, "for-each-ref", "--format=delete %(refname)", PREFIX)
    _git(master, "update-ref", "--stdin", stdin=refs)


def _data(text):
    return f"data {len(text.encode())}\n{text}\n"


def _git(master, *command, stdin=None):
    return master.run("git", f"--git-dir={REPOSITORY}", *command, stdin=stdin).stdout
