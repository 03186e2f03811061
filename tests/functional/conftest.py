"""
A master and two minions of this tree, on loopback, as a farm's master serves it: `app1`, which the
lab's inventory lists, and `stranger`, which none does. And an app host in a box, for each file of
tests that ship to it.
"""

import copy
import pathlib
import shutil
import tempfile

import pytest

from tests.functional.apphost import AppHost
from tests.functional.project import Project

CHECKOUT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="session")
def salt_factories_default_root_dir():
    """A short one: the paths of unix sockets are limited to 107 bytes."""
    root = pathlib.Path(tempfile.mkdtemp(prefix="sf-"))
    yield root
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="session")
def salt_factories_config():
    return {"slow_stop": False, "inject_sitecustomize": False}


@pytest.fixture(scope="session")
def salt_master(salt_factories):
    daemon = salt_factories.salt_master_daemon(
        "master",
        start_timeout=120,
        overrides={
            "file_roots": {"base": [str(CHECKOUT / "salt")]},
            "pillar_roots": {"base": [str(CHECKOUT / "pillar")]},
            "module_dirs": [str(CHECKOUT)],
            "fileserver_list_cache_time": 1,  # the plugin's 0 makes minions wait for each other
            "worker_threads": 3,
            "gather_job_timeout": 60,
            "log_level_logfile": "warning",
        },
    )
    with daemon.started():
        yield daemon


@pytest.fixture(scope="session")
def salt(salt_master):
    """`salt(minion, function, *arguments)`: what the real command returns, as text and `.data`."""
    overrides = {"autoload_dynamic_modules": False, "log_level_logfile": "warning"}
    minions = [
        salt_master.salt_minion_daemon(name, start_timeout=120, overrides=overrides)
        for name in ("app1", "stranger")
    ]
    with minions[0].started(), minions[1].started():
        command = salt_master.salt_cli(timeout=120)  # a busy machine answers late

        def call(minion, function, *arguments):
            return command.run(function, *arguments, minion_tgt=minion)

        for minion in minions:
            assert call(minion.id, "saltutil.sync_all").returncode == 0
        yield call


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    folder = tmp_path_factory.mktemp("host")
    host = AppHost(folder, Project(folder / "tiny.git"))
    try:
        yield host
    finally:
        host.close()


@pytest.fixture(scope="module")
def first(host):
    """The site's first release, live."""
    report = host.ship()
    assert report["result"], report["comment"]
    return report


@pytest.fixture
def told(host):
    """What the host is told, to be changed: ``told(shallow=True)``; as it was afterwards."""
    before = copy.deepcopy(host.pillar)

    def change(secrets=None, **site):
        host.pillar["sites"]["tiny"].update(site)
        host.pillar["secrets"]["sites"]["tiny"].update(secrets or {})
        host.write_pillar(host.pillar)

    yield change
    host.pillar = before
    host.write_pillar(before)


@pytest.fixture
def deploy_settings(host, told):
    """The site's ``deploy`` settings, to be changed; as they were afterwards."""

    def change(**changes):
        told(deploy={**host.pillar["sites"]["tiny"]["deploy"], **changes})

    return change
