"""Settings as a minion computes them: with Salt's own loader, file client and renderers, on copies
of small state trees and on the real one."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import pytest
import salt.config
import salt.fileclient
import salt.loader
import schema
import tuning
import yaml
from salt.exceptions import CommandExecutionError

ROOT = pathlib.Path(__file__).parents[2]
M, G = 1 << 20, 1 << 30
HARDWARE = {
    "ram_bytes": 4 * G,
    "cores": 2.0,
    "open_files": 524288,
    "somaxconn": 4096,
    "rotational": False,
}
PILLAR = {
    "environment": "lab",
    "hosts": {
        "db1": {"address": "198.18.0.51", "roles": ["database"]},
        "web1": {"address": "198.18.0.11", "roles": ["accelerator"]},
        "app*": {"network": "198.18.0.0/24", "roles": ["app"]},
    },
    "sites": {
        "newsroom": {
            "repository": "git://master/newsroom.git",
            "settings_module": "newsroom.settings",
            "wsgi_module": "newsroom.wsgi",
            "domains": ["newsroom.lab"],
        }
    },
    "overrides": {},
}


@pytest.fixture
def tree(tmp_path):
    """A copy of the state tree, to be changed."""
    shutil.copytree(ROOT / "salt", tmp_path / "salt", ignore=shutil.ignore_patterns("_*"))
    return tmp_path / "salt"


@pytest.fixture
def minion(tmp_path, tree):
    """Makes the execution modules of a host: minion(id, overrides={...}) -> loader."""

    def make(host="web1", overrides=None, own=None, sites=None, hardware=None, grains=None):
        options = salt.config.minion_config(None)
        hosts = {**PILLAR["hosts"]}
        if own is not None:
            hosts[host] = {**hosts[host], "settings": own}
        options.update(
            id=host,
            root_dir=str(tmp_path),
            cachedir=str(tmp_path / "cache"),
            extension_modules=str(tmp_path / "extmods"),
            module_dirs=[str(ROOT)],
            file_client="local",
            file_roots={"base": [str(tree)]},
            grains={
                "id": host,
                "os_family": "Debian",
                "os": "Debian",
                "oscodename": "bookworm",
                "hardware": hardware or HARDWARE,
                **(grains or {}),
            },
            pillar={
                **PILLAR,
                "hosts": hosts,
                "overrides": overrides or {},
                "sites": PILLAR["sites"] if sites is None else sites,
            },
        )
        return salt.loader.minion_mods(options)

    return make


def errors_of(modules, function="settings.get", *args):
    fresh = {"fresh": False} if function == "settings.explain" else {}
    with pytest.raises(CommandExecutionError) as error:
        modules[function](*(args or ["varnish"]), **fresh)
    return str(error.value)


def test_nothing_set(minion):
    varnish = minion()["settings.get"]("varnish")
    assert varnish["ttl"].s == 20
    assert varnish["probe"]["window"] == 5
    assert varnish["storage"].G == 2
    assert "90 % of 4096M RAM" in varnish["why"]["storage"]


def test_a_forked_process_fetches_files_over_a_connection_of_its_own(minion):
    modules = minion()

    def clients():
        modules["settings.source"]("varnish/defaults.yaml")
        kept = modules.pack["__context__"].values()
        return {id(one) for one in kept if isinstance(one, salt.fileclient.Client)}

    mine = clients()
    assert clients() == mine
    assert len(mine) == 1
    child = os.fork()
    if not child:
        os._exit(0 if len(clients() - mine) == 1 else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_one_value_set_changes_nothing_else(minion):
    before = minion()["settings.get"]("varnish")
    after = minion(overrides={"varnish": {"storage": "100M"}})["settings.get"]("varnish")
    assert after["storage"] == "100M"
    assert after["why"]["storage"].startswith("set in overrides.yaml; auto would be 2")
    for settings in (before, after):
        settings.pop("storage")
        settings["why"].pop("storage")
    assert before == after


def test_layers_in_their_order(minion):
    set_twice = minion(
        overrides={"varnish": {"ttl": "1m", "grace": "1h", "probe": {"window": 8}}},
        own={"varnish": {"ttl": "2m"}},
    )
    varnish = set_twice["settings.get"]("varnish")
    assert (varnish["ttl"], varnish["grace"]) == ("120s", "3600s")
    assert varnish["probe"]["window"] == 8
    assert varnish["probe"]["threshold"] == 3
    lines = set_twice["settings.explain"]("varnish", fresh=False)
    assert lines["ttl"] == "120s | hosts.yaml"
    assert lines["grace"] == "3600s | overrides.yaml"
    assert lines["port"] == "6081 | default"
    assert lines["storage"].split(" | ")[1] == "tuned"


def test_differences_by_system(minion):
    ubuntu = {"os": "Ubuntu", "oscodename": "noble"}
    assert minion("db1")["settings.get"]("postgres")["version"] == 15
    assert minion("db1", grains=ubuntu)["settings.get"]("postgres")["version"] == 16
    lines = minion("db1", grains=ubuntu)["settings.explain"]("postgres", "version", fresh=False)
    assert lines == {"version": "16 | os.yaml"}
    set_by_hand = minion("db1", overrides={"postgres": {"version": 17}}, grains=ubuntu)
    assert set_by_hand["settings.get"]("postgres")["version"] == 17


def test_a_limited_host_is_tuned_for_its_limit(minion):
    small = {**HARDWARE, "ram_bytes": G}
    postgres = minion("db1", hardware=small)["settings.get"]("postgres")
    assert postgres["shared_buffers"] == "256M"


def test_of_a_service_that_runs_elsewhere_nothing_is_computed(minion):
    modules = minion("web1", overrides={"postgres": {"port": 5433}})
    postgres = modules["settings.get"]("postgres")
    assert postgres["port"] == 5433
    assert postgres["shared_buffers"] == "auto"
    assert postgres["why"] == {}


def test_a_host_listed_as_a_pattern(minion):
    assert minion("app7")["settings.get"]("nginx")["port"] == 8080


def test_diff_tells_what_was_set(minion):
    assert minion()["settings.diff"](fresh=False) == {}
    modules = minion(overrides={"varnish": {"ttl": "1m", "grace": "6h", "storage": "1G"}})
    assert modules["settings.diff"](fresh=False) == {
        "varnish": {
            "storage": "1G | overrides.yaml | default: auto",
            "ttl": "60s | overrides.yaml | default: 20s",
        }
    }
    assert modules["settings.diff"]("os", fresh=False) == {}


def test_explain_names_the_nearest_key(minion):
    message = errors_of(minion(), "settings.explain", "varnish", "storge")
    assert "varnish has no setting 'storge'. Did you mean storage?" in message
    assert set(minion()["settings.explain"]("varnish", "probe", fresh=False)) == {
        *("probe.interval", "probe.timeout", "probe.window", "probe.threshold")
    }


def test_a_service_that_does_not_exist(minion):
    assert "no service 'varnsh'. Did you mean varnish?" in errors_of(
        minion(), "settings.get", "varnsh"
    )


FOUR_MISTAKES = {
    "overrides": {"varnish": {"storge": "1G", "ttl": 20}, "varnsh": {}, "haproxy": {"port": 0}},
    "sites": {"newsroom": {**PILLAR["sites"]["newsroom"], "wsgi_modul": "x"}},
    "own": {"varnish": {"threads_max": "many"}},
}
SENTENCES = [
    "pillar/environments/lab/overrides.yaml: varnsh is no service. Did you mean varnish?",
    "pillar/environments/lab/overrides.yaml: varnish.storge is unknown. Did you mean storage?",
    "pillar/environments/lab/overrides.yaml: varnish.ttl is 20, which is no duration. Allowed: "
    "duration 0s.., such as 30s.",
    "pillar/environments/lab/overrides.yaml: haproxy.port is 0, out of range. Allowed: int 1..655",
    "pillar/environments/lab/hosts.yaml: hosts.web1.settings.varnish.threads_max is 'many'.",
    "pillar/environments/lab/sites.yaml: sites.newsroom.wsgi_modul is unknown. Did you mean wsgi",
]


@pytest.mark.parametrize(
    ("function", "argument"),
    [("settings.get", "os"), ("settings.site", "newsroom"), ("settings.explain", "varnish")],
)
def test_all_errors_of_a_host_at_once(minion, function, argument):
    message = errors_of(minion(**FOUR_MISTAKES), function, argument)
    assert message.startswith("The settings of web1 have 6 errors:\n")
    for sentence in SENTENCES:
        assert sentence in message


def test_check_tells_errors_and_fails(minion):
    modules = minion(**FOUR_MISTAKES)
    found = modules["settings.check"](fresh=False)
    assert not found["ok"]
    assert len(found["errors"]) == 6


def test_check_of_a_sound_host(minion):
    modules = minion()
    assert modules["settings.check"](fresh=False) == {
        "ok": True,
        "services": ["os", "accounts", "ssh", "firewall", "updates", "rsyslog", "varnish"],
        "sites": ["newsroom"],
    }


def test_check_reads_the_pillar_anew_and_fails_truly(tmp_path, tree):
    """As an operator types it: salt-call in a process of its own, with the lab's pillar."""
    pillar = tmp_path / "pillar"
    shutil.copytree(ROOT / "pillar", pillar)
    (tmp_path / "minion").write_text(
        json.dumps(
            {
                "id": "cache1",
                "root_dir": str(tmp_path),
                "file_client": "local",
                "file_roots": {"base": [str(tree)]},
                "pillar_roots": {"base": [str(pillar)]},
                "module_dirs": [str(ROOT)],
                "grains_dirs": [str(ROOT / "_grains")],
                "minion_id_caching": False,
            }
        )
    )

    def check():
        salt_call = pathlib.Path(sys.executable).parent / "salt-call"
        command = [salt_call, "--local", "-c", tmp_path, "settings.check", "--out", "json"]
        # Elsewhere than in the checkout: its Saltfile would win over -c.
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        return done.returncode, json.loads(done.stdout)["local"]

    code, found = check()
    assert (code, found["ok"]) == (0, True), found
    overrides = pillar / "environments" / "lab" / "overrides.yaml"
    overrides.write_text("varnish: {ttl: 20}\n")
    code, found = check()
    assert (code, found["ok"]) == (1, False)
    assert "varnish.ttl is 20" in found["errors"][0]


def test_check_warns_of_too_much(minion):
    (warning,) = minion(overrides={"varnish": {"storage": "5G"}})["settings.check"](fresh=False)[
        "warnings"
    ]
    assert "which is more than 90 % of 4096M RAM" in warning


def test_a_misspelled_key_of_the_inventory(minion):
    modules = minion()
    modules.pack["__pillar__"]["hosts"]["web1"] = {"roles": ["accelerator"], "adress": "1.2.3.4"}
    assert "hosts.web1.adress is unknown. Did you mean address?" in errors_of(modules)


@pytest.mark.parametrize("nonsense", ["x", ["x"], 5])
def test_pillar_that_is_no_mapping(minion, nonsense):
    assert "overrides.yaml should be a mapping" in errors_of(minion(overrides=nonsense))
    assert "varnish is " in errors_of(minion(overrides={"varnish": nonsense}))
    assert "sites.newsroom is " in errors_of(minion(sites={"newsroom": nonsense}))


def test_without_the_grain(minion):
    modules = minion()
    del modules.pack["__grains__"]["hardware"]
    assert "saltutil.sync_all" in errors_of(modules)
    assert "saltutil.sync_all" in modules["settings.errors"]()[0]


def test_a_role_that_does_not_exist(minion):
    modules = minion()
    modules.pack["__pillar__"]["hosts"]["web1"] = {"roles": ["acelerator"]}
    (sentence,) = modules["settings.errors"]()
    assert "web1 has the role 'acelerator', which doesn't exist" in sentence


def test_the_master_is_asked_for_what_is_set_and_what_is_wanted(minion, monkeypatch):
    asked = []
    cache_files = salt.fileclient.FSClient.cache_files

    def listen(client, paths, *args, **named):
        asked.extend(path for path in paths if path.endswith("defaults.yaml"))
        return cache_files(client, paths, *args, **named)

    monkeypatch.setattr(salt.fileclient.FSClient, "cache_files", listen)
    modules = minion(overrides={"haproxy": {"port": 81}})
    modules["settings.site"]("newsroom")
    assert asked == ["salt://haproxy/defaults.yaml"]
    modules["settings.get"]("varnish")
    assert asked[1:] == ["salt://varnish/defaults.yaml"]


def test_a_host_that_no_inventory_lists(minion):
    sentence = "No inventory lists the minion id 'stranger'"
    modules = minion("stranger")
    assert sentence in errors_of(modules)
    assert sentence in modules["settings.errors"]()[0]
    assert sentence in modules["settings.check"](fresh=False)["errors"][0]


def test_a_changed_pillar_grain_or_file_is_seen(minion, tree, monkeypatch):
    modules = minion()
    assert modules["settings.get"]("varnish")["ttl"] == "20s"
    modules.pack["__pillar__"]["overrides"] = {"varnish": {"ttl": "1s"}}
    assert modules["settings.get"]("varnish")["ttl"] == "1s"
    modules.pack["__pillar__"]["overrides"]["varnish"]["ttl"] = "2s"
    assert modules["settings.get"]("varnish")["ttl"] == "2s"
    modules.pack["__grains__"]["hardware"] = {**HARDWARE, "ram_bytes": G}
    assert modules["settings.get"]("varnish")["storage"].M < 1024
    defaults = tree / "varnish" / "defaults.yaml"
    defaults.write_text(defaults.read_text().replace("port: 6081", "port: 6082"))
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 61)
    assert modules["settings.get"]("varnish")["port"] == 6082


def test_what_is_handed_out_may_be_changed(minion):
    modules = minion()
    modules["settings.get"]("varnish")["probe"]["window"] = 64
    assert modules["settings.get"]("varnish")["probe"]["window"] == 5


def test_later_calls_take_less_than_5_ms(minion):
    modules = minion("app1")
    modules["settings.get"]("nginx")
    start = time.process_time()  # a busy machine makes no difference
    for _ in range(20):
        modules["settings.get"]("nginx")
    assert (time.process_time() - start) / 20 < 0.005


SERVICES = sorted(path.parent.name for path in (ROOT / "salt").glob("*/defaults.yaml"))


@pytest.mark.parametrize("service", SERVICES)
def test_the_real_defaults_describe_every_key(service):
    folder = ROOT / "salt" / service
    keys = schema.read((folder / "defaults.yaml").read_text(), f"{service}/defaults.yaml")
    assert keys, "a service without settings needs no defaults.yaml"
    differences = folder / "os.yaml"
    if differences.exists():
        for grain, systems in yaml.safe_load(differences.read_text()).items():
            assert grain in ("os_family", "os", "oscodename")
            for system, given in systems.items():
                assert keys.check(given, f"{service}/os.yaml: {grain}.{system}.")[1] == []


@pytest.mark.parametrize("service", SERVICES)
def test_every_auto_is_computed_within_its_range(service):
    source = ROOT / "salt" / service / "defaults.yaml"
    auto = {n: k for n, k in schema.read(source.read_text(), service).items() if k.auto}
    if not auto:
        return
    everything = [*SERVICES, "salt_master"]
    for ram in (512 * M, G, 3 * G, 64 * G, 1024 * G):
        for cores in (1.0, 2.5, 128.0):
            for neighbours in ([service], everything):
                for files in (1024, 20000, 1 << 20):
                    hardware = {**HARDWARE, "ram_bytes": ram, "cores": cores, "open_files": files}
                    computed = getattr(tuning, service)(hardware, neighbours, {})
                    for name, key in auto.items():
                        key.value(computed[name][0])


def test_the_description_of_a_site():
    assert schema.read((ROOT / "salt/django/site.yaml").read_text(), "site.yaml")


def test_a_pooler_is_divided_by_the_sites_behind_it(minion):
    site = PILLAR["sites"]["newsroom"]
    elsewhere = [{"host": "db.test"}, {"engine": "mariadb"}, {"pooled": False}]
    others = {f"other{n}": site | {"database": one} for n, one in enumerate(elsewhere)}
    small = HARDWARE | {"cores": 16.0}
    sizes = [
        minion("db1", sites=sites, hardware=small)["settings.get"]("pgbouncer")["pool_size"]
        for sites in ({"a": site}, {"a": site, **others}, {"a": site, "b": site})
    ]
    assert sizes[0] == sizes[1] > sizes[2]
