"""
What Salt itself doesn't look at before it runs a state: does it exist, does it know its arguments,
do its requisites name anything?
"""

import functools
import importlib
import inspect
import re

from salt.state import STATE_INTERNAL_KEYWORDS

# What a compiled state carries besides what was written.
_OWN = {"__env__", "__id__", "__sls__", "__agg__", "name", "order"}
# What Salt takes from any state that needs it, without the function's signature saying so.
_ANYWHERE = {"use", "use_in", "retry", "umask", "timeout", "check_cmd", "tmp_ext", "tmp_dir"}
# What functions take as "any further argument" without describing it.
_UNDESCRIBED = {"file.directory": {"mode"}}
_REQUISITES = ("require", "watch", "onchanges", "onfail", "listen", "prereq")


def problems(compiler, chunks):
    """All that is wrong with compiled states, as sentences."""
    known = {
        (chunk["state"], name) for chunk in chunks for name in (chunk["__id__"], chunk["name"])
    }
    found = []
    for chunk in chunks:
        found += _unknown_words(compiler, chunk)
        for requisite in _REQUISITES:
            for wanted in chunk.get(requisite, []):
                found += _unmet(chunk, requisite, wanted, known)
    return found


def _unmet(chunk, requisite, wanted, known):
    if not isinstance(wanted, dict):
        wanted = {"id": wanted}
    for state, name in wanted.items():
        kinds = {kind for kind, _ in known} if state == "id" else {state}
        if state != "sls" and not any((kind, name) in known for kind in kinds):
            yield f"{chunk['__id__']}: {requisite} names {state}: {name}, which doesn't exist."


def _unknown_words(compiler, chunk):
    name = f"{chunk['state']}.{chunk['fun']}"
    function = _function(compiler.state.states, chunk["state"], chunk["fun"])
    if function is None:
        yield f"{chunk['__id__']}: there is no state {name}."
        return
    given = set(chunk) - _OWN - STATE_INTERNAL_KEYWORDS - _ANYWHERE
    if name == "module.run":
        yield from _unknown_call(compiler, chunk, given)
        return
    for word in sorted(given - _accepted(function) - _UNDESCRIBED.get(name, set())):
        yield f"{chunk['__id__']}: {name} has no argument {word!r}."


def _unknown_call(compiler, chunk, given):
    """`module.run` in its older form: the function's name, then its arguments."""
    called = chunk["name"]
    function = _function(compiler.state.functions, *called.partition(".")[::2])
    if function is None:
        yield f"{chunk['__id__']}: there is no execution function {called!r}."
        return
    for word in sorted(given - _accepted(function) - {"args", "kwargs", "returner"}):
        yield f"{chunk['__id__']}: {called} has no argument {word!r}."


def _function(loader, module, name):
    """A function as Salt would find it, also where a program it needs isn't installed here."""
    found = loader.get(f"{module}.{name}")
    if found is not None:
        return inspect.unwrap(found)
    package = "salt.states" if "file.managed" in loader and "test.nop" in loader else "salt.modules"
    try:
        return getattr(importlib.import_module(f"{package}.{module}"), name, None)
    except ImportError:
        return None


@functools.cache
def _accepted(function):
    """The arguments that a function names in its signature, or, if it takes any, describes."""
    parameters = inspect.signature(function).parameters.values()
    words = {p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        text = inspect.getdoc(function) or ""
        words |= set(re.findall(r"^\s*:param (?:[\w ]+ )?(\w+):", text, re.M))
        words |= set(re.findall(r"^\s*(\w+)(?: *:.*)?$", text, re.M))
    return words
