"""Render tests: pytest's parameters come from `matrix`, what is wrong with a host from `hosts`."""

import logging
import shutil

import pytest

from tests.render import hosts, matrix, tree


def pytest_generate_tests(metafunc):
    if "host" in metafunc.fixturenames:
        names = getattr(metafunc.module, "HOSTS", None) or list(matrix.hosts())
        metafunc.parametrize("host", names, ids=["-".join(name) for name in names], indirect=True)


def none(problems):
    """Fail with these sentences, if there are any, and nothing else."""
    problems = list(problems)
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)


@pytest.fixture
def host(request):
    """A rendered host of the matrix."""
    return hosts.render(*request.param)


@pytest.fixture(scope="session", autouse=True)
def _leave_nothing():
    logging.getLogger("salt").setLevel(logging.CRITICAL)  # what is wrong is in the tests' own words
    yield
    shutil.rmtree(tree.scratch(), ignore_errors=True)
