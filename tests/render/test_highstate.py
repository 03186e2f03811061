"""Every host of the matrix: its states compile, exist, know their arguments; its files render."""

import re

import pytest

from tests.render import hosts, matrix, tree
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
    ".repository",
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


@pytest.mark.parametrize(
    "name",
    [("onebox", "box", "8G", "jammy"), ("lab", "lb2", "64G", "bookworm")],
    ids="-".join,
)
def test_a_host_is_the_same_when_it_is_the_first_that_is_rendered(name):
    """The hosts above were rendered one after the other, in loaders that had been another's."""
    told = hosts.pillar(*name[:2])
    compiler = tree.Compiler(matrix.grains(*name))
    compiler.become(matrix.grains(*name), told)
    chunks = compiler.chunks()
    rendered = hosts.render(*name)
    assert chunks == rendered.chunks
    texts = {file.path: file.text for file in rendered.files}
    written = [chunk for chunk in chunks if hosts.writes(chunk)]
    assert {chunk["name"]: compiler.file(chunk) for chunk in written} == texts
