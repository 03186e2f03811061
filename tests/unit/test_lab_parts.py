"""The parts of the lab that are pure, or that need no more than a folder."""

import json

import pytest

from tests.lab import cgroups, host, image, machine, network, package_cache, salt
from tests.lab.commands import LabError, UsageError, run

V1 = """\
cgroup /sys/fs/cgroup/cpu cgroup rw,relatime,cpu 0 0
cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0
cgroup /sys/fs/cgroup/systemd cgroup rw,relatime,name=systemd 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0
/dev/vda / ext4 rw 0 0
"""
V2 = "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid,nodev 0 0\n"


def test_control_group_hierarchies_are_found_on_both_kinds_of_machine():
    found = {str(folder): controllers for folder, controllers in cgroups.hierarchies(V1)}
    assert "memory" in found["/sys/fs/cgroup/memory"]
    assert found["/sys/fs/cgroup/unified"] == {"v2"}
    assert "/" not in found
    assert [str(folder) for folder, _ in cgroups.hierarchies(V2)] == ["/sys/fs/cgroup"]


@pytest.mark.parametrize(("text", "expected"), [("768M", 805306368), ("2G", 2147483648)])
def test_memory_sizes(text, expected):
    assert host.memory_bytes(text) == expected


@pytest.mark.parametrize("text", ["768", "1.5G", "2g", "", None])
def test_a_memory_size_that_is_none_is_refused(text):
    with pytest.raises(UsageError, match="isn't a memory size"):
        host.memory_bytes(text)


def test_a_host_name_too_long_for_a_cable_is_refused():
    assert len(network.port_of("a" * network.LONGEST_HOST_NAME)) == 15
    with pytest.raises(UsageError, match="can't name a cable"):
        network.port_of("a" * (network.LONGEST_HOST_NAME + 1))


def kernel_with(tmp_path, **settings):
    """A folder that looks like /proc/sys."""
    kernel = tmp_path / "sys"
    values = dict.fromkeys(machine.KERNEL_SETTINGS, 0)
    values |= {"kernel/random/boot_id": "first-boot"} | settings
    for name, value in values.items():
        (kernel / name).parent.mkdir(parents=True, exist_ok=True)
        (kernel / name).write_text(str(value))
    return kernel


def test_kernel_settings_are_raised_and_given_back(tmp_path):
    kernel = kernel_with(tmp_path, **{"fs/inotify/max_user_watches": 9_999_999})
    machine.prepare_kernel(tmp_path, kernel)
    machine.prepare_kernel(tmp_path, kernel)  # a second lab
    assert (kernel / "net/ipv4/ip_forward").read_text() == "1"
    assert (kernel / "fs/inotify/max_user_watches").read_text() == "9999999"
    machine.restore_kernel(tmp_path, kernel)
    assert (kernel / "net/ipv4/ip_forward").read_text() == "0"
    assert (kernel / "fs/inotify/max_user_watches").read_text() == "9999999"
    assert not (tmp_path / machine.KERNEL_NOTE).exists()


def test_after_a_reboot_nothing_is_given_back(tmp_path):
    kernel = kernel_with(tmp_path)
    machine.prepare_kernel(tmp_path, kernel)
    (kernel / "kernel/random/boot_id").write_text("second-boot")
    machine.restore_kernel(tmp_path, kernel)
    assert (kernel / "net/ipv4/ip_forward").read_text() == "1"


@pytest.mark.parametrize(
    ("path", "kept"),
    [
        ("/debian/pool/main/n/nginx/nginx_1.22.1-9_amd64.deb", True),
        ("/debian/dists/bookworm/main/binary-amd64/by-hash/SHA256/0a1b", True),
        ("/debian/dists/bookworm/InRelease", False),
        ("/debian/dists/bookworm/main/binary-amd64/Packages.xz", False),
    ],
)
def test_only_what_never_changes_is_kept(path, kept):
    assert package_cache.is_immutable(path) is kept


def test_two_mirrors_files_of_one_name_are_kept_apart(tmp_path):
    names = {
        package_cache.file_for(tmp_path, f"http://{mirror}.example/pool/a_1_all.deb")
        for mirror in "ab"
    }
    assert len(names) == 2


def test_unused_images_are_pruned_but_for_the_latest(tmp_path):
    import os

    for age, name in enumerate(["new", "older", "oldest", "used"]):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    (tmp_path / ".building-x").mkdir()
    image.prune(tmp_path, {"used"}, spare=1)
    assert {path.name for path in tmp_path.iterdir()} == {"new", "used", ".building-x"}


def test_failed_states_are_named_by_their_cause():
    answer = {
        "file_|-nginx/site_|-/etc/nginx/a_|-managed": {"result": False, "comment": "no source"},
        "service_|-nginx/service_|-nginx_|-running": {
            "result": False,
            "comment": "One or more requisite failed: nginx/site",
        },
        "pkg_|-nginx/package_|-nginx_|-installed": {"result": True, "comment": "fine"},
    }
    assert salt.failures(answer) == ["nginx/site: no source"]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (["Rendering failed: line 3"], ["Rendering failed: line 3"]),
        ("ERROR: no such revision", ["ERROR: no such revision"]),
        ("Minion did not return. [No response]", ["Minion did not return. [No response]"]),
        (False, ["no answer"]),
        ({"result": True, "release": "20260101-abc", "phases": []}, []),
        ({"result": False, "comment": "build: no network", "phases": []}, ["build: no network"]),
        ("fine", []),
        (True, []),
    ],
)
def test_other_answers(answer, expected):
    assert salt.failures(answer) == expected


def test_a_failed_command_is_one_sentence():
    with pytest.raises(LabError, match=r"^ls failed with exit code 2: .*No such file"):
        run("ls", "/nowhere/at/all")


def test_yaml_is_read_by_the_systems_python(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("hosts: {a: {address: 198.18.0.1}}\n")
    assert machine.read_yaml(path) == {"hosts": {"a": {"address": "198.18.0.1"}}}
    path.write_text("hosts: [")
    with pytest.raises(UsageError, match=r"a\.yaml isn't valid YAML"):
        machine.read_yaml(path)


def test_kernel_note_is_json(tmp_path):
    machine.prepare_kernel(tmp_path, kernel_with(tmp_path))
    note = json.loads((tmp_path / machine.KERNEL_NOTE).read_text())
    assert note["settings"]["net/ipv4/ip_forward"] == 0


@pytest.mark.parametrize(
    ("system", "name"),
    [({"ID": "fedora", "PRETTY_NAME": "Fedora 40"}, "Fedora 40"), ({}, "neither")],
)
def test_another_distribution_is_refused_by_its_name(system, name):
    with pytest.raises(UsageError, match=f"this is {name}"):
        machine.check_system(system)


@pytest.mark.parametrize("system", [{"ID": "debian"}, {"ID": "mint", "ID_LIKE": "ubuntu debian"}])
def test_debian_and_its_relatives_are_accepted(system):
    machine.check_system(system)


def test_too_little_disk_is_refused(tmp_path):
    machine.check_disk(tmp_path, 0)
    with pytest.raises(UsageError, match="needs 9000000 GiB free"):
        machine.check_disk(tmp_path, 9_000_000)


def test_the_memory_limit_reaches_a_v2_group(tmp_path, monkeypatch):
    """A folder that looks like a v2 hierarchy: where the limit is written, and repeated."""
    tree = tmp_path / "cgroup"
    (tree / cgroups.TREE / "one" / "app1" / "payload").mkdir(parents=True)
    (tree / "cgroup.controllers").write_text("pids memory cpu")
    for folder in (tree / cgroups.TREE / "one" / "app1", *tree.rglob("payload")):
        (folder / "memory.max").write_text("max")
    monkeypatch.setattr(cgroups, "hierarchies", lambda: [(tree, {"v2"})])
    doors = cgroups.create("one", "app1", 1 << 30)
    cgroups.repeat_limit("one", "app1", 1 << 30)
    group = tree / cgroups.TREE / "one" / "app1"
    assert doors == [group / "cgroup.procs"]
    assert (group / "memory.max").read_text() == str(1 << 30)
    assert (group / "payload/memory.max").read_text() == str(1 << 30)
    # Of what was written one after the other a plain file keeps the last.
    assert (tree / cgroups.TREE / "cgroup.subtree_control").read_text() == "+cpu"
    assert (tree / cgroups.TREE / "one/cgroup.subtree_control").read_text() == "+memory"
    assert not (group / "cgroup.subtree_control").exists()  # else it could hold no process


def test_hosts_have_memory_of_their_own_and_share_the_processors(tmp_path, monkeypatch):
    memory, processors = tmp_path / "memory", tmp_path / "cpu"
    for host_name in ("app1", "db1"):
        (memory / cgroups.TREE / "one" / host_name).mkdir(parents=True)
        (memory / cgroups.TREE / "one" / host_name / "memory.limit_in_bytes").touch()
    processors.mkdir()
    monkeypatch.setattr(
        cgroups, "hierarchies", lambda: [(memory, {"memory"}), (processors, {"cpu", "cpuacct"})]
    )
    app, db = (cgroups.create("one", host_name, 1 << 30) for host_name in ("app1", "db1"))
    assert app[0] != db[0]
    assert app[1] == db[1] == processors / cgroups.TREE / "one" / "cgroup.procs"
