"""A farm of its own for tests that want other hosts or sites than the lab has."""

import contextlib
import pathlib
import shutil

import yaml

from tests.farm.conftest import CHECKOUT, LabUnderTest
from tests.lab import farm
from tests.lab.commands import remove

ENVIRONMENT = "pillar/environments/lab"
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "__pycache__")


@contextlib.contextmanager
def another_farm(name, hosts, **files):
    """
    Bring a farm up beside the lab, on a network of its own, from a copy of the checkout; take it
    down afterwards.

    name
        The lab's name.
    hosts
        What stands below ``hosts:`` in the environment's hosts.yaml.
    files
        What takes the place of other files of the environment: ``sites={...}`` is the whole of
        sites.yaml.

    Gives a :class:`tests.farm.conftest.LabUnderTest`; ``change`` of it replaces such a file while
    the farm is up.
    """
    checkout = pathlib.Path("/var/tmp", f"saltern-{name}")
    remove(checkout)
    shutil.copytree(CHECKOUT, checkout, symlinks=True, ignore=LEFT_OUT)

    def change(**files):
        for file, content in files.items():
            (checkout / ENVIRONMENT / f"{file}.yaml").write_text(yaml.safe_dump(content))

    change(hosts={"hosts": hosts}, **files)
    lab = farm.Lab(name, checkout)
    try:
        lab.up([])
        found = LabUnderTest(lab)
        found.change = change
        yield found
    finally:
        lab.down()
        remove(checkout)


def environment(file):
    """A file of the lab's own environment, such as ``sites``, to make another one of."""
    return yaml.safe_load((CHECKOUT / ENVIRONMENT / f"{file}.yaml").read_text())
