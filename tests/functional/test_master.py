"""What a real master serves to real minions of this tree, and what it doesn't."""

import pathlib
import re

CHECKOUT = pathlib.Path(__file__).parents[2]


def test_every_module_of_the_tree_is_synchronised_and_loads(salt):
    loaded = set(salt("app1", "sys.list_functions").data)
    for path in (CHECKOUT / "_modules").glob("*.py"):
        text = path.read_text()
        named = re.search(r'^__virtualname__ = "(\w+)"', text, re.M)
        name = named[1] if named else path.stem
        functions = {
            f"{name}.{found.rstrip('_')}" for found in re.findall(r"^def ([a-z]\w*)", text, re.M)
        }
        assert functions <= loaded, path.name


def test_every_state_module_is_synchronised_and_loads(salt):
    modules = {path.stem for path in (CHECKOUT / "_states").glob("*.py")}
    loaded = {name.partition(".")[0] for name in salt("app1", "sys.list_state_functions").data}
    assert modules <= loaded


def test_grains_tell_the_hardware(salt):
    told = salt("app1", "grains.get", "hardware").data
    assert told["ram_bytes"] > 0
    assert told["cores"] > 0


def test_settings_are_sound(salt):
    done = salt("app1", "settings.check")
    assert done.returncode == 0
    assert "os" in done.data["services"]


def test_peers_are_those_of_the_inventory(salt):
    assert salt("app1", "inventory.peers", "database").data == [
        {"id": "db1", "address": "198.18.0.51"},
        {"id": "db2", "address": "198.18.0.52"},
    ]


def test_a_role_that_does_not_exist_is_an_error_with_a_sentence(salt):
    done = salt("app1", "inventory.peers", "databse")
    assert done.returncode != 0
    assert "There is no role 'databse'" in done.stdout + done.stderr


def test_the_states_of_a_listed_host_compile(salt):
    chunks = salt("app1", "state.show_lowstate").data
    assert all(isinstance(chunk, dict) for chunk in chunks), chunks
    assert "refused" not in {chunk["__sls__"] for chunk in chunks}


def test_a_host_that_no_inventory_lists_is_refused_with_a_sentence(salt):
    done = salt("stranger", "state.apply")
    assert done.returncode != 0
    (state,) = done.data.values()
    assert state["result"] is False
    assert "No inventory lists the minion id 'stranger'" in state["name"]
    assert "hosts.yaml" in state["name"]


def test_a_host_that_no_inventory_lists_learns_nothing(salt):
    told = salt("stranger", "pillar.ls").data
    assert not {"secrets", "hosts", "sites"} & set(told)


def test_the_master_serves_states_and_nothing_else(salt):
    served = salt("app1", "cp.list_master").data
    assert "top.sls" in served
    leaked = [path for path in served if "secrets/" in path or ".git" in path or "tests/" in path]
    assert not leaked
    assert {path.partition("/")[0] for path in served} <= {
        path.name for path in (CHECKOUT / "salt").iterdir()
    }
