"""What a host of the matrix comes to: its states, its files, and everything that is wrong."""

import dataclasses
import functools
import re

from tests.render import matrix, states, tree


@dataclasses.dataclass(frozen=True)
class File:
    """A file that the states would write."""

    path: str
    text: str
    mode: str
    user: str
    group: str
    state: str  # the state's id
    check: str | None  # the state's own check_cmd
    suffix: str  # the state's tmp_ext


@dataclasses.dataclass
class Host:
    """A rendered host; each of the lists of sentences is empty if all is well."""

    name: tuple
    address: str
    chunks: list
    compile: list
    states: list
    render: list
    files: list


@functools.cache
def pillar(farm, host):
    """A host's pillar, through the real top file, with the farm's inventory."""
    found = tree.pillar(tree.pillar_tree(farm, matrix.FARMS[farm]), host)
    if "_errors" in found:
        raise AssertionError("\n".join(found["_errors"]))
    return found


@functools.cache
def _compiler():
    return tree.Compiler(matrix.grains("onebox", "box", "8G", "bookworm"))


@functools.cache
def render(farm, host, size, system):
    """Render a host; see `matrix` for the arguments."""
    compiler = _compiler()
    compiler.become(matrix.grains(farm, host, size, system), pillar(farm, host))
    made = Host(
        name=(farm, host, size, system),
        address=matrix.FARMS[farm][host]["address"],
        chunks=compiler.chunks(),
        compile=[],
        states=[],
        render=[],
        files=[],
    )
    if made.chunks and isinstance(made.chunks[0], str):
        made.compile, made.chunks = [_short(text) for text in made.chunks], []
    made.states = states.problems(compiler, made.chunks)
    for chunk in made.chunks:
        if not writes(chunk):
            continue
        try:
            made.files.append(_file(compiler, chunk))
        except Exception as error:  # noqa: BLE001 - whatever a template raises is its problem
            made.render.append(f"{chunk['__id__']} ({chunk['name']}): {_short(str(error))}")
    return made


def writes(chunk):
    """Whether a state writes a file, rather than only giving one its owner and mode."""
    managed = (chunk["state"], chunk["fun"]) == ("file", "managed")
    return managed and bool({"source", "contents"} & set(chunk))


def _file(compiler, chunk):
    return File(
        path=chunk["name"],
        text=compiler.file(chunk),
        mode=str(chunk.get("mode", "0644")),
        user=chunk.get("user") or "root",
        group=chunk.get("group") or "root",
        state=chunk["__id__"],
        check=chunk.get("check_cmd"),
        suffix=chunk.get("tmp_ext", ""),
    )


def _short(text):
    """Salt's words without the listing of the whole template."""
    return re.sub(r"\nTraceback \(most recent call last\):\n(  .*\n)+", "\n", text)[:3000]
