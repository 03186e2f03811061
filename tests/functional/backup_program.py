"""The program of the backup host, as a module."""

import importlib.machinery
import importlib.util
import pathlib
import sys

SALT = pathlib.Path(__file__).parents[2] / "salt"
# What a copy for development has instead of the people in the tests' databases.
RULES = {
    "person.name": "fake",
    "person.email": "fake",
    "person.password": "hash",
    "person.phone": "clear",
    "person.about": "fake",
    "person.tags": "clear",
    "person.country": "keep",
    "letter.sender": "fake",
    "letter.text": "fake",
    "session": "empty",
    "country": "keep",
}


def load(monkeypatch, *services):
    """``saltern-backup`` with the modules of ``salt/<service>/files`` that it finds on a host."""
    for service in services:
        monkeypatch.syspath_prepend(str(SALT / service / "files"))
        for path in (SALT / service / "files").glob("*.py"):
            monkeypatch.delitem(sys.modules, path.stem, raising=False)
    path = str(SALT / "backup/files/saltern-backup")
    loader = importlib.machinery.SourceFileLoader("saltern_backup", path)
    found = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    monkeypatch.setitem(sys.modules, loader.name, found)
    loader.exec_module(found)
    return found
