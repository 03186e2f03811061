"""Makes the modules importable by their plain names: `import tuning`. What they need of Salt's
loader (`__salt__`, `__pillar__`, ...) isn't there, so only what is pure can be tested like this."""

import importlib.util
import pathlib
import sys

ROOT = pathlib.Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "_modules"), str(ROOT / "_grains")]


def load(path):
    """A module of the tree that has the name of another one: a fresh copy."""
    spec = importlib.util.spec_from_file_location(f"tested_{pathlib.Path(path).stem}", ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
