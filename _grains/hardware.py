"""
What this host may really use of the machine it runs on.

Salt's own grains tell what the machine has. A host in a container or under a control group may use
less: ``hardware`` tells that, for :mod:`tuning` to divide. The limits that count are those of the
host's first process: the group of whoever asks may be that of one service.
"""

import pathlib
import re
import resource

# From here on a limit means "none": cgroup v1 says 2^63, rounded down to a page.
_UNLIMITED = 1 << 60
# Disks that say of themselves that they turn, whatever they are made of.
_VIRTUAL_DISKS = re.compile(r"(vd|xvd|nbd|rbd)[a-z0-9]*$")
_NO_DISKS = re.compile(r"(loop|ram|zram|sr|fd)\d*$")


def hardware():
    """
    What this host may use.

    Returns ``{"hardware": {...}}`` with ``ram_bytes``, ``cores`` (a float), ``swap_bytes``,
    ``rotational`` (whether the disk of /var/lib turns; ``None`` if nobody knows), ``kind``
    (``physical``, ``virtual`` or ``container``), ``page_bytes``, ``huge_page_bytes``,
    ``huge_pages``, ``somaxconn`` and ``open_files`` (of one process). Never raises.
    """
    return {"hardware": _read(pathlib.Path("/"))}


def _read(root):
    """The facts that the files below a folder tell: a path object, ``/`` on a real host."""
    memory = _sizes(root / "proc/meminfo")
    groups = _groups(root)
    return {
        "ram_bytes": _ram(memory, groups),
        "cores": _cores(root, groups),
        "swap_bytes": memory.get("SwapTotal", 0),
        "rotational": _rotational(root),
        "kind": _kind(root),
        "page_bytes": resource.getpagesize(),
        "huge_page_bytes": memory.get("Hugepagesize", 0),
        "huge_pages": _number(root / "proc/sys/vm/nr_hugepages") or 0,
        "somaxconn": _number(root / "proc/sys/net/core/somaxconn") or 128,
        "open_files": _open_files(root),
    }


def _ram(memory, groups):
    """The smallest of what the machine has and what any control group on the way up allows."""
    limits = [memory.get("MemTotal")]
    limits += [_number(folder / "memory.max") for folder in groups.get("v2", [])]
    limits += [_number(folder / "memory.limit_in_bytes") for folder in groups.get("memory", [])]
    return min((limit for limit in limits if limit and limit < _UNLIMITED), default=0)


def _cores(root, groups):
    """The smallest of affinity, cpuset and quota. A quota may be a fraction."""
    affinity = re.search(
        r"^Cpus_allowed_list:\s*(\S+)", _text(_first_process(root, "status")), re.M
    )
    limits = [
        _listed(affinity[1]) if affinity else None,
        _listed(_text(root / "sys/devices/system/cpu/online")),
    ]
    for folder in groups.get("v2", []):
        limits.append(_listed(_text(folder / "cpuset.cpus.effective")))
        limits.append(_quota(*(_text(folder / "cpu.max").split() or ["max"])))
    for folder in groups.get("cpuset", []):
        limits.append(_listed(_text(folder / "cpuset.cpus")))
    for folder in groups.get("cpu", []):
        quota = _text(folder / "cpu.cfs_quota_us").strip()
        limits.append(_quota(quota, _text(folder / "cpu.cfs_period_us").strip()))
    return float(min((limit for limit in limits if limit), default=1))


def _quota(quota, period="100000", *_):
    """How many cores a quota is worth; ``None`` if there is none (``max``, ``-1``)."""
    if not (quota.isdecimal() and period.isdecimal() and int(quota) and int(period)):
        return None
    return max(0.01, round(int(quota) / int(period), 2))


def _groups(root):
    """
    The folders of the control groups that this host is in, from its own up to the highest that
    can be seen: cgroup v1 by controller, cgroup v2 under ``v2``.
    """
    points = _mount_points(root)
    found = {}
    for line in _text(_first_process(root, "cgroup")).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        for name in (controllers or "v2").split(","):
            if name in points:
                found[name] = _way_up(root, *points[name], group)
    return found


def _mount_points(root):
    """Where each controller is mounted, and which group that is: (folder, group)."""
    found = {}
    for line in _text(root / "proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if len(fields) < 5 or len(kind) < 3:
            continue
        if kind[0] == "cgroup2":
            found.setdefault("v2", (fields[4], fields[3]))
        elif kind[0] == "cgroup":
            found.update(dict.fromkeys(kind[2].split(","), (fields[4], fields[3])))
    return found


def _way_up(root, point, mounted, group):
    """The folders from a group up to the mount point; only the latter if the group lies above."""
    top = root / point.lstrip("/")
    if mounted != "/":
        group = group.removeprefix(mounted)
    folders = [top]
    for step in group.strip("/").split("/"):
        if step == "..":
            return [top]
        folders.append(folders[-1] / step)
    return folders


def _rotational(root):
    """Whether the disk that holds /var/lib turns."""
    folder = root / "sys/dev/block" / _device(root, "/var/lib")
    try:
        disk = folder.resolve(strict=True)
    except OSError:
        return _any_rotational(root)
    if (disk / "partition").exists():
        disk = disk.parent
    return _disk_rotational(disk)


def _device(root, path):
    """The device number of the file system that holds a path, as ``major:minor``."""
    best, device = "", "none"
    for line in _text(root / "proc/self/mountinfo").splitlines():
        fields = line.split()
        if len(fields) < 5 or not (path + "/").startswith(fields[4].rstrip("/") + "/"):
            continue
        if len(fields[4]) >= len(best):
            best, device = fields[4], fields[2]
    return device


def _any_rotational(root):
    """For a file system without a disk of its own (overlay, btrfs): whether any disk turns."""
    try:
        disks = sorted((root / "sys/block").iterdir())
    except OSError:
        return None
    known = [_disk_rotational(disk) for disk in disks if not _NO_DISKS.match(disk.name)]
    known = [turns for turns in known if turns is not None]
    return any(known) if known else None


def _disk_rotational(disk):
    if _VIRTUAL_DISKS.match(disk.name):
        return None
    return {0: False, 1: True}.get(_number(disk / "queue/rotational"))


def _kind(root):
    environment = _text(root / "proc/1/environ").split("\0")
    if any(variable.startswith("container=") for variable in environment):
        return "container"
    if (root / "run/systemd/container").exists() or (root / ".dockerenv").exists():
        return "container"
    if re.search(r"^flags\s*:.*\bhypervisor\b", _text(root / "proc/cpuinfo"), re.M):
        return "virtual"
    return "virtual" if _text(root / "sys/hypervisor/type").strip() else "physical"


def _open_files(root):
    """The most files that one process may be allowed to have open."""
    ceiling = _number(root / "proc/sys/fs/nr_open") or 1 << 20
    limit = re.search(r"^Max open files\s+\S+\s+(\d+)", _text(_first_process(root, "limits")), re.M)
    return min(int(limit[1]), ceiling) if limit else ceiling


def _first_process(root, name):
    """A file about the host's first process; about this one where the first is hidden."""
    first = root / "proc/1" / name
    return first if _text(first) else root / "proc/self" / name


def _sizes(path):
    """The sizes of a file such as ``/proc/meminfo``, in bytes."""
    rows = re.findall(r"^(\w+):\s+(\d+) kB$", _text(path), re.M)
    return {name: int(amount) * 1024 for name, amount in rows}


def _listed(text):
    """How many processors a list such as ``0-3,8`` names."""
    total = 0
    for part in text.strip().split(","):
        span = re.fullmatch(r"([0-9]+)(?:-([0-9]+))?", part)
        if span:
            total += int(span[2] or span[1]) - int(span[1]) + 1
    return total


def _number(path):
    text = _text(path).strip()
    return int(text) if re.fullmatch(r"[0-9]+", text) else None


def _text(path):
    try:
        return path.read_text(errors="replace")
    except (OSError, ValueError):
        return ""
