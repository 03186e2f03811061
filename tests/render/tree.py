"""
The tree as Salt reads it: configuration, pillar, a host's states and files, in one process.

Making Salt's state compiler anew for each host takes ten times as long as swapping grains and
pillar below it, and gives the same result; `Compiler` does the latter.
"""

import ast
import copy
import functools
import pathlib
import shutil
import sys
import tempfile

import jinja2
import salt.config
import salt.loader
import salt.pillar
import salt.state
import yaml

ROOT = pathlib.Path(__file__).parents[2]


@functools.cache
def scratch():
    """A folder for everything that Salt caches, removed at the end (conftest.py)."""
    return pathlib.Path(tempfile.mkdtemp(prefix="saltern-render-"))


@functools.cache
def options():
    """The configuration of a minion without a master, made of this tree."""
    opts = salt.config.minion_config(str(ROOT / "etc/salt/minion"), minion_id="render")
    opts.update(
        file_client="local",
        file_roots={"base": [str(ROOT / "salt")]},
        pillar_roots={"base": [str(ROOT / "pillar")]},
        module_dirs=[str(ROOT)],
        root_dir=str(scratch()),
        cachedir=str(scratch() / "cache"),
        extension_modules=str(scratch() / "extmods"),
        log_level="critical",
        log_level_logfile="quiet",
    )
    return opts


@functools.cache
def roles():
    """The names of all roles, as the inventory's own table has them."""
    for node in ast.parse((ROOT / "_modules/inventory.py").read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "ROLES":
            return tuple(ast.literal_eval(node.value))
    raise LookupError("_modules/inventory.py has no table ROLES")


def pillar_tree(name, hosts, environment="lab", **files):
    """
    A copy of the pillar with another inventory in one environment.

    name
        The copy's name.
    hosts
        What stands below `hosts:`.
    environment
        Whose inventory it takes the place of.
    files
        Further files of the environment to replace: `sites={...}` is the whole of sites.yaml.

    Returns its folder.
    """
    copied = scratch() / "pillar" / name
    if not copied.exists():
        shutil.copytree(ROOT / "pillar", copied)
    folder = copied / "environments" / environment
    for file, content in {"hosts": {"hosts": hosts}, **files}.items():
        (folder / f"{file}.yaml").write_text(yaml.safe_dump(content))
    return copied


def pillar(folder, minion_id, grains=None):
    """
    What the master tells a host.

    folder
        The pillar tree.
    minion_id
        The authenticated id.
    grains
        What the host says of itself.

    Returns the pillar; its key `_errors` holds what went wrong.
    """
    opts = copy.deepcopy(options())
    opts["pillar_roots"] = {"base": [str(folder)]}
    opts["id"] = minion_id
    made = salt.pillar.Pillar(opts, grains or {"id": minion_id}, minion_id, "base")
    try:
        return made.compile_pillar()
    finally:
        made.destroy()


@functools.cache
def translate_templates_once():
    """
    Keep the code that Jinja makes of a template for the next host.

    Salt makes a new Jinja environment, with the same settings, for each rendering, so Jinja's own
    cache is always empty; two thirds of a rendering's time are spent on translating.
    """
    original = jinja2.Environment.compile
    kept = {}

    def translate(self, source, name=None, filename=None, raw=False, defer_init=False):
        key = (source, name, filename, raw, defer_init, self.trim_blocks, self.lstrip_blocks)
        if key not in kept:
            kept[key] = original(self, source, name, filename, raw, defer_init)
        return kept[key]

    jinja2.Environment.compile = translate


class Compiler:
    """Compiles the states of hosts whose `os_family` is Debian, and renders their files."""

    def __init__(self, grains):
        translate_templates_once()
        opts = options().copy()
        opts["id"], opts["grains"] = grains["id"], dict(grains)
        self.high = salt.state.HighState(opts, initial_pillar={"_": 1})
        self.state = self.high.state

    def become(self, grains, pillar):
        """Be this host from now on."""
        grains, pillar = dict(grains), copy.deepcopy(pillar)
        for loader in self._loaders():
            loader.pack["__grains__"], loader.pack["__pillar__"] = grains, pillar
        for opts in self._options():
            opts["grains"], opts["pillar"], opts["id"] = grains, pillar, grains["id"]
        # What compares the top file's targets with the id keeps a loader of its own.
        self.high.matchers = salt.loader.matchers(self.high.opts)
        self.high.iorder = 10000
        self.high.building_highstate = type(self.high.building_highstate)()

    def _loaders(self):
        """Every loader that holds grains and pillar of its own."""
        state = self.state
        yield state.functions
        # Since 3008 modules that call each other do so through another loader.
        if getattr(state.functions, "_dunder_salt", None):
            yield state.functions._dunder_salt
        for loader in (state.rend, state.states, state.utils, state.serializers):
            yield loader if hasattr(loader, "pack") else loader._dict  # some are in a filter

    def _options(self):
        """Every copy of the configuration that something looks into."""
        yield from (self.high.opts, self.state.opts)
        for loader in self._loaders():
            yield from (loader.opts, loader.pack["__opts__"])
        for name, module in list(sys.modules.items()):
            if name.startswith("salt.loaded.") and isinstance(
                module.__dict__.get("__opts__"), dict
            ):
                yield module.__opts__

    def chunks(self):
        """
        The host's states, in the order in which they would run.

        Returns a list of low chunks. If anything doesn't compile, a list of sentences.
        """
        return self.high.compile_low_chunks()

    def file(self, chunk):
        """
        The content that a `file.managed` chunk would write.

        Returns text. Raises `ValueError` with Salt's own words if it can't be rendered.
        """
        if "contents" in chunk:
            text = chunk["contents"]
            return "\n".join(text) + "\n" if isinstance(text, list) else text.rstrip("\n") + "\n"
        if not chunk.get("template"):
            return pathlib.Path(self._cached(chunk["source"])).read_text()
        path, _, error = self.state.functions["file.get_managed"](
            chunk["name"],
            chunk["template"],
            chunk["source"],
            "",
            None,
            chunk.get("user"),
            chunk.get("group"),
            chunk.get("mode"),
            None,
            "base",
            chunk.get("context"),
            chunk.get("defaults"),
        )
        if error or not path:
            raise ValueError(error or f"{chunk['source']} isn't in the tree")
        rendered = pathlib.Path(path)
        try:
            return rendered.read_text()
        finally:
            rendered.unlink()

    def _cached(self, source):
        path = self.state.functions["cp.cache_file"](source)
        if not path:
            raise ValueError(f"{source} isn't in the tree")
        return path
