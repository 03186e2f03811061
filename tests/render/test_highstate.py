"""Every host of the matrix: its states compile, exist, know their arguments; its files render."""

import re

from tests.render.conftest import none

ID = re.compile(r"^[a-z][a-z0-9_-]*(/[A-Za-z0-9._@ -]+)+$")


def test_compiles(host):
    none(host.compile)
    assert host.chunks


def test_states_and_arguments_and_requisites_exist(host):
    none(host.states)


def test_files_render(host):
    none(host.render)


def test_ids_are_paths_that_begin_with_their_service(host):
    wrong = [
        f"{chunk['__id__']!r} in {chunk['__sls__']}"
        for chunk in host.chunks
        if not ID.match(chunk["__id__"])
        or chunk["__id__"].partition("/")[0] != chunk["__sls__"].partition(".")[0]
    ]
    none(wrong)


def test_files_say_who_manages_them(host):
    """Whoever opens a file on a host learns from its first lines where to change it."""
    wrong = [
        f"{file.path} of {file.state}"
        for file in host.files
        if "Managed by Saltern" not in "\n".join(file.text.splitlines()[:3])
        and not file.path.endswith(CANNOT_SAY)
    ]
    none(wrong)


# Formats without comments, or whose every byte counts.
CANNOT_SAY = (
    ".json",
    ".pem",
    ".http",
    ".html",
    ".env",
    "cookie",
    ".acl",
    "enabled_plugins",
    ".pgpass",
    ".key",
    ".passphrase",
    "userlist.txt",
)
