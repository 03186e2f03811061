"""
A control group for each host, on machines with cgroup v1, v2 or both.

The processors are the exception: they belong to the lab as a whole. The kernel lends them to groups
in turn, so with a group for each, a host that answers in a millisecond would wait a quarter of a
second for one that builds, and niceness would count for nothing between hosts.
"""

import contextlib
import pathlib
import time

TREE = "saltern-lab"
MOUNTS = pathlib.Path("/proc/mounts")


def hierarchies(mounts=None):
    """
    The mounted control group hierarchies.

    Returns a list of (folder, set of controllers); v2's set is ``{"v2"}``.
    """
    found = []
    for line in (mounts if mounts is not None else MOUNTS.read_text()).splitlines():
        _, folder, kind, options = line.split()[:4]
        if kind == "cgroup2":
            found.append((pathlib.Path(folder), {"v2"}))
        elif kind == "cgroup":
            found.append((pathlib.Path(folder), set(options.split(","))))
    return found


def create(lab, host, memory):
    """
    Make a host's control groups.

    memory
        The most RAM that the host may use, in bytes.

    Returns the ``cgroup.procs`` files that a process writes its id to, to belong to the host.
    """
    doors = []
    limited = False
    for mount, controllers in hierarchies():
        group = _group(mount, controllers, lab, host)
        if controllers == {"v2"}:
            _delegate(mount, group)
        group.mkdir(parents=True, exist_ok=True)
        if "cpuset" in controllers:
            _inherit_cpuset(mount, group)
        for name in ("memory.limit_in_bytes", "memory.max"):
            if (group / name).exists():
                (group / name).write_text(str(memory))
                limited = True
        doors.append(group / "cgroup.procs")
    if not limited:
        raise OSError("no memory controller")
    return doors


def repeat_limit(lab, host, memory):
    """In v2 a host sees the group below its own, once it is booting: say the limit there, too."""
    for mount, controllers in hierarchies():
        seen = mount / TREE / lab / host / "payload" / "memory.max"
        if controllers == {"v2"} and seen.exists():
            seen.write_text(str(memory))


def usage(lab, host):
    """A host's memory in bytes as (used without reclaimable page cache, limit), or None."""
    for mount, _ in hierarchies():
        group = mount / TREE / lab / host
        for used, limit, cache in (
            ("memory.usage_in_bytes", "memory.limit_in_bytes", "total_inactive_file"),
            ("memory.current", "memory.max", "inactive_file"),
        ):
            if not (group / limit).exists() or not (group / used).exists():
                continue
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            reclaimable = int(stat.get(cache, 0))
            total = int((group / used).read_text())
            return max(0, total - reclaimable), int((group / limit).read_text())
    return None


def join(lab, host):
    """Put this process where the host's are, so that what it uses counts there."""
    for mount, controllers in hierarchies():
        group = _group(mount, controllers, lab, host)
        if controllers & {"cpu", "memory"} and group.exists():
            (group / "cgroup.procs").write_text("0")
        elif controllers == {"v2"} and (group / "payload").exists():
            # In v2 only leaves hold processes.
            leaf = group / "payload" / "lab-run"
            leaf.mkdir(exist_ok=True)
            (leaf / "cgroup.procs").write_text("0")


def exists(lab):
    """Whether a lab has control groups."""
    return any((mount / TREE / lab).exists() for mount, _ in hierarchies())


def remove(lab, host=None, patience=5):
    """Remove the control groups of a host, or of a whole lab, once they are empty."""
    for mount, _ in hierarchies():
        group = mount / TREE / lab
        _remove_tree(group / host if host else group, patience)
        with contextlib.suppress(OSError):
            (mount / TREE).rmdir()  # only the last lab's leaving succeeds


def _group(mount, controllers, lab, host):
    """A host's group in a hierarchy."""
    shared = mount / TREE / lab
    return shared if "cpu" in controllers else shared / host


def _delegate(mount, group):
    """Let v2's controllers reach down to the host's group, that of the processors to the lab's."""
    wanted = (mount / "cgroup.controllers").read_text().split()
    folder = mount
    for part in group.relative_to(mount).parts:
        if folder == group.parent:
            wanted = [controller for controller in wanted if controller != "cpu"]
        for controller in wanted:
            with contextlib.suppress(OSError):
                (folder / "cgroup.subtree_control").write_text(f"+{controller}")
        folder = folder / part
        folder.mkdir(exist_ok=True)


def _inherit_cpuset(mount, group):
    """A v1 cpuset group takes no process before it has been given processors and memory nodes."""
    folder = mount
    for part in group.relative_to(mount).parts:
        above, folder = folder, folder / part
        for name in ("cpuset.cpus", "cpuset.mems"):
            if not (folder / name).read_text().strip():
                (folder / name).write_text((above / name).read_text())


def _remove_tree(group, patience):
    if not group.exists():
        return
    deadline = time.monotonic() + patience
    while True:
        folders = [path for path in group.rglob("*") if path.is_dir()]
        for folder in [*sorted(folders, key=lambda path: -len(path.parts)), group]:
            with contextlib.suppress(OSError):
                folder.rmdir()
        if not group.exists():
            return
        if time.monotonic() > deadline:
            group.rmdir()  # says why it can't
        time.sleep(0.05)
