"""Reads the facts of hosts that differ, from trees of the files that their kernels show."""

import os
import time

import hardware
import pytest

M, G = 1 << 20, 1 << 30

MEMINFO = """\
MemTotal:       24684092 kB
MemFree:        23989532 kB
SwapTotal:       2097148 kB
HugePages_Total:       0
Hugepagesize:       2048 kB
"""
ALL = 24684092 * 1024
V2 = "31 23 0:28 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
V1_GROUPS = "8:memory:{0}\n3:cpuset:{0}\n2:cpu,cpuacct:{0}\n1:name=systemd:{0}\n0::{0}\n"
UNLIMITED_V1 = "9223372036854771712\n"


@pytest.fixture
def machine(tmp_path):
    """Writes files below a folder and reads it as a host: machine({path: content}) -> facts."""

    def read(files, links=()):
        common = {
            "proc/meminfo": MEMINFO,
            "proc/1/status": "Name:\tsystemd\nCpus_allowed:\tff\nCpus_allowed_list:\t0-7\n",
            "proc/1/limits": "Max open files            1024                 524288        files\n",
            "sys/devices/system/cpu/online": "0-7\n",
            "proc/sys/net/core/somaxconn": "4096\n",
            "proc/sys/fs/nr_open": "1048576\n",
            "proc/sys/vm/nr_hugepages": "0\n",
        }
        for name, content in {**common, **files}.items():
            if content is None:
                continue
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        for name, target in links:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(target)
        return hardware._read(tmp_path)

    return read


def test_machine_without_groups(machine):
    facts = machine({})
    assert facts["ram_bytes"] == ALL
    assert facts["cores"] == 8
    assert facts["swap_bytes"] == 2097148 * 1024
    assert facts["huge_page_bytes"] == 2 * M
    assert facts["open_files"] == 524288
    assert facts["somaxconn"] == 4096
    assert facts["kind"] == "physical"


def test_v2_without_limits(machine):
    facts = machine(
        {
            "proc/self/mountinfo": V2,
            "proc/1/cgroup": "0::/init.scope\n",
            "sys/fs/cgroup/init.scope/memory.max": "max\n",
            "sys/fs/cgroup/init.scope/cpu.max": "max 100000\n",
            "sys/fs/cgroup/cpuset.cpus.effective": "0-7\n",
        }
    )
    assert (facts["ram_bytes"], facts["cores"]) == (ALL, 8)


def test_v2_takes_the_smallest_limit_on_the_way_up(machine):
    facts = machine(
        {
            "proc/self/mountinfo": V2,
            "proc/1/cgroup": "0::/farm/db1/init.scope\n",
            "sys/fs/cgroup/farm/memory.max": f"{2 * G}\n",
            "sys/fs/cgroup/farm/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/farm/db1/memory.max": f"{G}\n",
            "sys/fs/cgroup/farm/db1/cpu.max": "max 100000\n",
            "sys/fs/cgroup/farm/db1/init.scope/memory.max": "max\n",
        }
    )
    assert (facts["ram_bytes"], facts["cores"]) == (G, 1.5)


def test_v2_inside_a_container_that_sees_its_own_top(machine):
    facts = machine(
        {
            "proc/self/mountinfo": V2,
            "proc/1/cgroup": "0::/\n",
            "sys/fs/cgroup/memory.max": f"{512 * M}\n",
            "sys/fs/cgroup/cpu.max": "50000 100000\n",
            "proc/1/environ": "PATH=/bin\0container=lxc\0",
        }
    )
    assert (facts["ram_bytes"], facts["cores"], facts["kind"]) == (512 * M, 0.5, "container")


def test_group_that_lies_above_what_is_mounted(machine):
    facts = machine(
        {
            "proc/self/mountinfo": V2,
            "proc/1/cgroup": "0::/../../other\n",
            "sys/fs/cgroup/memory.max": f"{G}\n",
        }
    )
    assert facts["ram_bytes"] == G


def test_mount_that_shows_only_the_containers_own_group(machine):
    facts = machine(
        {
            "proc/self/mountinfo": V2.replace(" / /sys", " /docker/abc /sys"),
            "proc/1/cgroup": "0::/docker/abc/inner\n",
            "sys/fs/cgroup/memory.max": f"{2 * G}\n",
            "sys/fs/cgroup/inner/memory.max": f"{G}\n",
        }
    )
    assert facts["ram_bytes"] == G


def test_v1_without_limits(machine):
    facts = machine(
        {
            "proc/self/mountinfo": V1,
            "proc/1/cgroup": V1_GROUPS.format("/"),
            "sys/fs/cgroup/memory/memory.limit_in_bytes": UNLIMITED_V1,
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpuset/cpuset.cpus": "0-7\n",
        }
    )
    assert (facts["ram_bytes"], facts["cores"]) == (ALL, 8)


def test_v1_with_limits_of_a_nested_group(machine):
    facts = machine(
        {
            "proc/self/mountinfo": V1,
            "proc/1/cgroup": V1_GROUPS.format("/farm/app1"),
            "sys/fs/cgroup/memory/memory.limit_in_bytes": UNLIMITED_V1,
            "sys/fs/cgroup/memory/farm/memory.limit_in_bytes": f"{G}\n",
            "sys/fs/cgroup/memory/farm/app1/memory.limit_in_bytes": UNLIMITED_V1,
            "sys/fs/cgroup/cpu,cpuacct/farm/app1/cpu.cfs_quota_us": "225000\n",
            "sys/fs/cgroup/cpu,cpuacct/farm/app1/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpuset/farm/app1/cpuset.cpus": "0-1,4,6-7\n",
        }
    )
    assert (facts["ram_bytes"], facts["cores"]) == (G, 2.25)


def test_cpuset_and_affinity(machine):
    narrow = "Cpus_allowed_list:\t0,2-3\n"
    assert machine({"proc/1/status": narrow})["cores"] == 3
    facts = machine(
        {
            "proc/self/mountinfo": V2,
            "proc/1/cgroup": "0::/small\n",
            "sys/fs/cgroup/small/cpuset.cpus.effective": "1\n",
        }
    )
    assert facts["cores"] == 1


@pytest.mark.parametrize("quota", ["", "max", "0 0", "-1 100000", "100000 0", "x y z"])
def test_quotas_that_say_nothing(machine, quota):
    facts = machine(
        {
            "proc/self/mountinfo": V2,
            "proc/1/cgroup": "0::/\n",
            "sys/fs/cgroup/cpu.max": f"{quota}\n",
        }
    )
    assert facts["cores"] == 8


@pytest.mark.parametrize(("told", "turns"), [("1\n", True), ("0\n", False), ("?\n", None)])
def test_disk_of_a_partition(machine, told, turns):
    facts = machine(
        {
            "proc/self/mountinfo": "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n",
            "sys/devices/pci/block/sda/queue/rotational": told,
            "sys/devices/pci/block/sda/sda1/partition": "1\n",
        },
        links=[("sys/dev/block/8:1", "../../devices/pci/block/sda/sda1")],
    )
    assert facts["rotational"] is turns


def test_disk_of_the_data_and_not_of_the_system(machine):
    facts = machine(
        {
            "proc/self/mountinfo": "22 1 8:0 / / rw - ext4 /dev/sda rw\n"
            "23 22 259:0 / /var/lib rw - ext4 /dev/nvme0n1 rw\n"
            "24 22 8:16 / /var/library rw - ext4 /dev/sdb rw\n",
            "sys/dev/block/8:0/queue/rotational": "1\n",
            "sys/dev/block/259:0/queue/rotational": "0\n",
            "sys/dev/block/8:16/queue/rotational": "1\n",
        }
    )
    assert facts["rotational"] is False


def test_disk_of_an_overlay(machine):
    files = {
        "proc/self/mountinfo": "22 1 0:52 / / rw - overlay overlay rw\n",
        "sys/block/loop0/queue/rotational": "1\n",
        "sys/block/sda/queue/rotational": "0\n",
    }
    assert machine(files)["rotational"] is False
    assert machine({**files, "sys/block/sdb/queue/rotational": "1\n"})["rotational"] is True


def test_virtual_disks_are_not_believed(machine):
    facts = machine(
        {
            "sys/block/vda/queue/rotational": "1\n",
            "proc/cpuinfo": "processor\t: 0\nflags\t\t: fpu hypervisor sse\n",
        }
    )
    assert (facts["rotational"], facts["kind"]) == (None, "virtual")


def test_open_files_of_a_host_that_may_not_raise_them(machine):
    limits = "Max open files            20000                20000                files     \n"
    assert machine({"proc/1/limits": limits})["open_files"] == 20000
    unlimited = "Max open files            unlimited            unlimited            files     \n"
    assert machine({"proc/1/limits": unlimited})["open_files"] == 1048576


def test_nothing_to_read_at_all(tmp_path):
    facts = hardware._read(tmp_path / "missing")
    assert (facts["ram_bytes"], facts["cores"], facts["rotational"]) == (0, 1.0, None)


def test_files_that_make_no_sense(machine):
    nonsense = "\x00\xff²\n:::\n - \n0-\n"
    names = (
        "proc/meminfo proc/1/cgroup proc/self/mountinfo proc/1/status proc/1/limits proc/cpuinfo "
        "proc/1/environ proc/sys/fs/nr_open proc/sys/net/core/somaxconn sys/block/sda/queue "
        "sys/devices/system/cpu/online"
    )
    facts = machine(dict.fromkeys(names.split(), nonsense))
    assert facts["cores"] == 1


def test_files_that_may_not_be_read(machine, tmp_path):
    machine({"proc/1/cgroup": "0::/\n", "proc/self/mountinfo": V2})
    for path in tmp_path.rglob("*"):
        if path.is_file():
            path.unlink()
            path.mkdir()  # unreadable for root, too
    assert hardware._read(tmp_path)["ram_bytes"] == 0


def test_this_machine_in_less_than_20_ms():
    taken = []
    for _ in range(5):
        start = time.process_time()  # a busy machine makes no difference
        facts = hardware.hardware()["hardware"]
        taken.append(time.process_time() - start)
    assert min(taken) < 0.020
    assert 0 < facts["ram_bytes"] <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < facts["cores"] <= os.cpu_count()
    assert facts["open_files"] > 0


def test_salt_finds_one_grain_and_nothing_else():
    public = [name for name, value in vars(hardware).items() if callable(value) and name[0] != "_"]
    assert public == ["hardware"]
