"""
What this host may really use of the machine it runs on.

Salt's own grains tell what the machine has. A host inside a container or a control group may use
less: ``hardware`` tells that, for :mod:`tuning` to divide.
"""

import math
import os
import pathlib
import re
import resource

# Limits from here on mean "no limit" in cgroup v1 (2^63 rounded down to a page).
_UNLIMITED = 1 << 60


def hardware():
    """
    Facts about RAM, processors, disk and kernel limits.

    Returns ``{"hardware": {...}}`` with ``ram_bytes``, ``cores`` (a float), ``swap_bytes``,
    ``rotational`` (``True``, ``False``, or ``None`` if the kernel doesn't tell), ``kind``
    (``physical``, ``virtual`` or ``container``), ``page_bytes``, ``huge_page_bytes``,
    ``huge_pages``, ``somaxconn`` and ``open_files``.
    """
    return {"hardware": _facts(pathlib.Path("/"))}


def _facts(root):
    """The facts that the files below ``root`` tell."""
    memory = _meminfo(root)
    groups = _cgroups(root)
    return {
        "ram_bytes": _ram(memory, groups),
        "cores": _cores(root, groups),
        "swap_bytes": memory.get("SwapTotal", 0),
        "rotational": _rotational(root),
        "kind": _kind(root),
        "page_bytes": os.sysconf("SC_PAGE_SIZE"),
        "huge_page_bytes": memory.get("Hugepagesize", 0),
        "huge_pages": _number(root / "proc/sys/vm/nr_hugepages") or 0,
        "somaxconn": _number(root / "proc/sys/net/core/somaxconn") or 128,
        "open_files": _open_files(root),
    }


def _ram(memory, groups):
    """The smallest of what the machine has and what a control group on the way up allows."""
    limits = [memory.get("MemTotal", 0)]
    for version, folder in groups.get("memory", []):
        name = "memory.max" if version == 2 else "memory.limit_in_bytes"
        limits.append(_number(folder / name))
    return min((limit for limit in limits if limit and limit < _UNLIMITED), default=0)


def _cores(root, groups):
    """The smallest of affinity, cpuset and quota; a quota may be a fraction."""
    limits = [_affinity(root)]
    for version, folder in groups.get("cpuset", []):
        for name in ("cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus"):
            listed = _count(_text(folder / name))
            if listed:
                limits.append(listed)
                break
    for version, folder in groups.get("cpu", []):
        limits.append(_quota(version, folder))
    return float(min((limit for limit in limits if limit), default=1))


def _affinity(root):
    allowed = re.search(r"^Cpus_allowed_list:\s*(\S+)", _text(root / "proc/self/status"), re.M)
    online = _count(_text(root / "sys/devices/system/cpu/online"))
    listed = _count(allowed[1]) if allowed else 0
    return min(filter(None, (listed, online)), default=0)


def _quota(version, folder):
    if version == 2:
        words = _text(folder / "cpu.max").split()
        quota, period = (words + ["max", "100000"])[:2] if len(words) == 2 else ("max", "1")
    else:
        quota = _text(folder / "cpu.cfs_quota_us").strip()
        period = _text(folder / "cpu.cfs_period_us").strip()
    if not (quota.isdigit() and period.isdigit() and int(quota) and int(period)):
        return None
    return math.floor(100 * int(quota) / int(period)) / 100 or 0.01


def _cgroups(root):
    """Each controller's folders, from this process's group up to the top of what is mounted."""
    found = {}
    mounts = _mounts(root)
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, own = rest.partition(":")
        version = 1 if controllers else 2
        for name in controllers.split(",") if controllers else ("memory", "cpu", "cpuset"):
            mount = mounts.get(name if version == 1 else "")
            if mount:
                folders = _up_from(root, *mount, own)
                found.setdefault(name, []).extend((version, folder) for folder in folders)
    return found


def _mounts(root):
    """Where each v1 controller, and v2 under the empty name, is mounted: (point, its root)."""
    found = {}
    for line in _text(root / "proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        fields, kinds = left.split(), right.split()
        if len(fields) < 5 or len(kinds) < 3:
            continue
        if kinds[0] == "cgroup2":
            found[""] = (fields[4], fields[3])
        elif kinds[0] == "cgroup":
            for option in kinds[2].split(","):
                found[option] = (fields[4], fields[3])
    return found


def _up_from(root, point, shown, own):
    """
    The folders from a group up to the mount point. Inside a container the group's path may be
    told from above the mount's own root, or from outside what can be seen.
    """
    top = root / point.lstrip("/")
    if shown != "/" and (own + "/").startswith(shown + "/"):
        own = own[len(shown) :]
    steps = [step for step in own.split("/") if step]
    if ".." in steps:
        steps = []
    folders = [top]
    for step in steps:
        folders.append(folders[-1] / step)
    return [folder for folder in folders if folder.is_dir()]


def _rotational(root):
    """Whether the disks that hold data turn; the slowest one counts."""
    seen = []
    try:
        disks = sorted((root / "sys/block").iterdir())
    except OSError:
        return None
    for disk in disks:
        if re.match(r"(loop|ram|zram|sr|fd|dm-|md)", disk.name) or not _number(disk / "size"):
            continue
        seen.append(_number(disk / "queue/rotational") == 1)
    return any(seen) if seen else None


def _kind(root):
    if (root / "run/systemd/container").exists() or (root / ".dockerenv").exists():
        return "container"
    if re.search(r"^container=", _text(root / "proc/1/environ").replace("\0", "\n"), re.M):
        return "container"
    if re.search(r"^flags\s*:.*\bhypervisor\b", _text(root / "proc/cpuinfo"), re.M):
        return "virtual"
    return "physical"


def _open_files(root):
    """The most files that one process may be allowed to have open."""
    limits = re.search(r"^Max open files\s+\S+\s+(\S+)", _text(root / "proc/1/limits"), re.M)
    ceiling = _number(root / "proc/sys/fs/nr_open") or 1 << 20
    if limits and limits[1].isdigit():
        return min(int(limits[1]), ceiling)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return ceiling if hard == resource.RLIM_INFINITY else min(hard, ceiling)


def _meminfo(root):
    """The sizes of ``/proc/meminfo`` in bytes."""
    rows = re.findall(r"^(\w+):\s+(\d+) kB", _text(root / "proc/meminfo"), re.M)
    return {name: int(amount) * 1024 for name, amount in rows}


def _count(listed):
    """How many processors a list such as ``0-3,8`` names."""
    total = 0
    for part in listed.strip().split(","):
        first, _, last = part.partition("-")
        if first.isdigit() and (not last or last.isdigit()):
            total += int(last or first) - int(first) + 1
    return total


def _number(path):
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


def _text(path):
    try:
        return path.read_text(errors="replace")
    except (OSError, ValueError):
        return ""
