"""The lab itself: its hosts are limited, reachable, mortal; it leaves nothing behind."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.lab import cgroups, farm, network

LAB = pathlib.Path(__file__).resolve().parents[2] / "lab"
# A host whose loss for a moment is no matter: the first of its pair serves on.
SPARE = "cache2"
SECOND = "second"


def ask(*words, name=None, **options):
    """Type ./lab with these words. Returns a ``CompletedProcess`` with text output."""
    command = [sys.executable, str(LAB), *(["--name", name] if name else []), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_each_host_sees_its_memory_limit(lab):
    code = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null"
    for host in lab.hosts.values():
        seen = lab.run(host.name, "sh", "-c", code, check=False).stdout.split()
        assert seen == [str(host.memory)], host.name


def test_the_memory_limit_is_enforced(lab):
    limit = lab.hosts[SPARE].memory
    eat = f"b = bytearray({2 * limit}); b[::4096] = bytes([1]) * len(b[::4096])"
    done = lab.run(SPARE, "python3", "-c", eat, check=False)
    assert done.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL), done.stderr


def test_every_host_is_up_without_a_failed_unit(lab):
    for name in lab.hosts:
        assert lab.run(name, "systemctl", "is-system-running").stdout.strip() == "running", name


def test_run_passes_everything_through():
    done = ask("run", "app1", "sh", "-c", "cat; echo oops >&2; exit 7", input="spoken\n")
    assert (done.returncode, done.stdout, done.stderr) == (7, "spoken\n", "oops\n")


def test_run_gives_a_clean_environment():
    environment = dict(os.environ, LC_ALL="xx", DATABASE_URL="from the machine")
    seen = ask("run", "app1", "env", env=environment).stdout
    assert "DATABASE_URL" not in seen
    assert "LC_ALL" not in seen
    assert "HOME=/root\n" in seen


def test_salt_is_the_real_one():
    assert ask("salt", "--version").stdout.startswith("salt 3")
    done = ask("salt", "--out=json", "--static", "app1", "test.ping")
    assert json.loads(done.stdout) == {"app1": True}


def test_an_unknown_host_is_refused_with_the_nearest():
    for words in (["run", "ap1", "true"], ["kill", "ap1"], ["up", "ap1"]):
        done = ask(*words)
        assert done.returncode == 2
        assert re.search(r"lists no host 'ap1': did you mean app[12]\?$", done.stderr.strip())


def test_only_seeded_keys_are_accepted(lab):
    keys = json.loads(lab.run("master", "salt-key", "--out=json", "-L").stdout)
    assert sorted(keys["minions"]) == sorted(lab.hosts)
    assert not keys["minions_pre"] + keys["minions_rejected"] + keys["minions_denied"]


def test_the_master_reads_the_checkout_and_cannot_change_it(lab):
    seen = lab.run("master", "sha256sum", "/srv/saltern/salt/top.sls").stdout.split()[0]
    top = LAB.parent / "salt/top.sls"
    assert seen == subprocess.check_output(["sha256sum", top], text=True).split()[0]
    assert lab.run("master", "touch", "/srv/saltern/x", check=False).returncode != 0
    assert lab.run("app1", "test", "-e", "/srv/saltern", check=False).returncode != 0


def test_up_again_leaves_what_is_running_alone(lab):
    before = {name: host.init() for name, host in lab.hosts.items()}
    done = ask("up", "--no-apply")
    assert done.returncode == 0, done.stderr
    assert {name: host.init() for name, host in lab.hosts.items()} == before


def test_a_killed_host_keeps_its_disk(lab):
    lab.run(SPARE, "sh", "-c", "echo kept > /root/note; sync")
    lab.kill(SPARE)
    assert not lab.hosts[SPARE].running()
    refused = ask("run", SPARE, "true")
    assert refused.returncode == 2
    assert f"./lab start {SPARE}" in refused.stderr
    lab.start(SPARE)
    assert lab.run(SPARE, "cat", "/root/note").stdout == "kept\n"
    assert lab.salt(SPARE, "test.ping") == {SPARE: True}


def test_a_cut_host_is_off_the_network_and_mended_back_on_it(lab):
    ping = ["ping", "-c", "1", "-W", "1", lab.hosts[SPARE].address]
    assert lab.run("master", *ping, check=False).returncode == 0
    assert ask("cut", SPARE).returncode == 0
    assert "cut off" in next(line for line in ask("status").stdout.splitlines() if SPARE in line)
    assert lab.run("master", *ping, check=False).returncode != 0
    assert lab.run(SPARE, "true").returncode == 0  # it lives on
    assert ask("mend", SPARE).returncode == 0
    assert lab.run("master", *ping, check=False).returncode == 0


def test_nothing_between_hosts_meets_a_firewall_of_the_hub(lab):
    ask_kernel = ["sysctl", "--all", "--pattern", r"^net\.bridge\.bridge-nf-call-"]
    command = network.on_hub(lab.lab.name, ask_kernel)
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "= 1" not in shown


def test_status_shows_each_host_with_its_release(lab):
    live = lab.run("app1", "readlink", "/srv/sites/newsroom/current").stdout.strip()
    lines = {line.split()[0]: line for line in ask("status").stdout.splitlines()[1:]}
    assert set(lines) == set(lab.hosts)
    assert re.search(r" up +198\.18\.0\.31 +\d+ / 2048 MiB +app ", lines["app1"])
    assert lines["app1"].endswith(f"newsroom {live.rsplit('/', 1)[-1]}")


def test_packages_are_downloaded_once(lab):
    """Two hosts fetch the same package; the second's comes out of the lab's own cache."""
    fetch = "cd /tmp && rm -f zile_* && apt-get update -q && apt-get download -q zile && rm zile_*"
    log = lab.lab.folder / "packages.log"
    lab.run("lb1", "sh", "-c", fetch)
    before = log.read_text().count("\n")
    lab.run("lb2", "sh", "-c", fetch)
    said = log.read_text().splitlines()[before:]
    package = [line for line in said if "zile_" in line]
    assert package
    assert all("kept" in line for line in package), package


def test_another_checkout_cannot_take_the_lab_over(lab, tmp_path):
    copy = tmp_path / "checkout"
    ignored = shutil.ignore_patterns(".git", "__pycache__")
    shutil.copytree(LAB.parent, copy, symlinks=True, ignore=ignored)
    command = [sys.executable, str(copy / "lab"), "up", "--no-apply"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"belongs to the checkout {lab.lab.checkout}" in done.stderr


# A second lab beside the first


def traces(name):
    """Everything on the machine that bears a lab's name."""
    mine = farm.Lab(name, LAB.parent)
    text = pathlib.Path("/proc/self/mounts").read_text()
    links = subprocess.check_output(["ip", "-details", "link", "show"], text=True)
    tables = subprocess.check_output(["nft", "list", "tables"], text=True)
    found = network.namespaces(name)
    found += [line for line in text.splitlines() if f"/{name}/" in line]
    found += [line for line in links.splitlines() if f"saltern-lab-{name}" in line]
    found += [line for line in tables.splitlines() if line.endswith(f"saltern-lab-{name}")]
    found += [str(network.NETNS_CONFIG / network.hub(name))] * (
        network.NETNS_CONFIG / network.hub(name)
    ).exists()
    found += [f"pid {pid}" for pid in mine._processes()]
    found += ["control groups"] * cgroups.exists(name)
    found += [str(mine.folder)] * mine.folder.exists()
    return found


@pytest.fixture
def second():
    """A lab of a master and a balancer, taken down whatever happens."""
    done = ask("up", "lb1", "--no-apply", name=SECOND)
    assert done.returncode == 0, done.stderr
    yield farm.Lab(SECOND, LAB.parent)
    assert ask("down", name=SECOND).returncode == 0


@pytest.mark.drill
def test_two_labs_are_strangers_and_down_leaves_nothing(lab, second):
    assert second.hosts["lb1"].address == lab.hosts["lb1"].address
    assert second.hosts["lb1"].run("hostname").stdout == "lb1\n"
    first = lab.run("lb1", "cat", "/etc/machine-id").stdout
    assert second.hosts["lb1"].run("cat", "/etc/machine-id").stdout != first
    assert traces(SECOND)
    began = time.monotonic()
    assert ask("down", name=SECOND).returncode == 0
    assert time.monotonic() - began < 20
    assert traces(SECOND) == []
    assert ask("down", name=SECOND).returncode == 0  # nothing to do
    assert lab.salt("lb1", "test.ping") == {"lb1": True}


@pytest.mark.drill
def test_a_start_with_an_empty_disk_forgets_all_but_its_key(second):
    host = second.hosts["lb1"]
    host.run("touch", "/root/note")
    key = host.run("cat", "/etc/salt/pki/minion/minion.pub").stdout
    host.kill()
    assert ask("start", "--empty", "lb1", name=SECOND).returncode == 0
    assert host.run("test", "-e", "/root/note", check=False).returncode == 1
    assert host.run("cat", "/etc/salt/pki/minion/minion.pub").stdout == key


@pytest.mark.drill
def test_up_after_a_crash_goes_on_from_the_disks(second):
    """Everything ends at once and half of the network is gone, as after a reboot."""
    second.hosts["lb1"].run("sh", "-c", "echo kept > /root/note; sync")
    for pid in second._processes():
        os.kill(pid, signal.SIGKILL)
    while second._processes():
        time.sleep(0.1)
    for mount in second._mounts():
        subprocess.check_call(["umount", mount])
    subprocess.check_call(["ip", "netns", "delete", network.namespace(SECOND, "lb1")])
    done = ask("up", "lb1", "--no-apply", name=SECOND)
    assert done.returncode == 0, done.stderr
    assert second.hosts["lb1"].run("cat", "/root/note").stdout == "kept\n"


@pytest.mark.drill
def test_up_after_a_half_made_host_makes_it_anew(second):
    """A disk whose making was interrupted isn't trusted."""
    host = second.hosts["lb1"]
    host.kill()
    (host.folder / "image").unlink()
    done = ask("up", "lb1", "--no-apply", name=SECOND)
    assert done.returncode == 0, done.stderr
    assert host.run("systemctl", "is-system-running").stdout.strip() == "running"
