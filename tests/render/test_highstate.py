"""Every host of the matrix: its states compile, exist, know their arguments; its files render."""

import json
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


def test_no_state_holds_a_secret(host):
    """Minions keep compiled states on disk: a secret belongs into a template, or is looked up."""
    told = hosts.pillar(*host.name[:2]).get("secrets", {})
    compiled = json.dumps(host.chunks, default=str)
    none(
        f"a secret of {kind}"
        for kind, value in told.items()
        for secret in lines(value)
        if json.dumps(secret)[1:-1] in compiled
    )


def lines(value):
    """The lines of all texts in a structure that are long enough to be secrets."""
    if isinstance(value, dict):
        return {line for part in value.values() for line in lines(part)}
    return {line for line in str(value).splitlines() if len(line) >= 12 and "-----" not in line}


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
    "/etc/hostname",
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


def test_search_engines_may_list_production_only():
    grains, told = matrix.grains("lab", "lb1", "1G", "bookworm"), hosts.pillar("lab", "lb1")
    compiler = tree.Compiler(grains)
    for environment, kept_out in (("production", False), ("staging", True)):
        compiler.become(grains, {**told, "environment": environment})
        (chunk,) = [c for c in compiler.chunks() if c["__id__"] == "haproxy/config"]
        assert ("X-Robots-Tag" in compiler.file(chunk)) is kept_out
