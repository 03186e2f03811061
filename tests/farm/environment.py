"""What the lab's environment says, changed for a while on its master, not in the checkout."""

import contextlib

import yaml

ENVIRONMENT = "/srv/saltern/pillar/environments/lab"


@contextlib.contextmanager
def changed(lab, file, change):
    """
    Let the master read a file of the lab's environment as it is after a change of its data.

    The checkout isn't touched: the changed file is mounted over it, on the lab's master alone.
    """
    path, beside = f"{ENVIRONMENT}/{file}", f"/run/{file}"
    data = yaml.safe_load(lab.run("master", "cat", path).stdout)
    change(data)
    lab.run("master", "sh", "-c", f"cat > {beside}", stdin=yaml.safe_dump(data))
    lab.run("master", "mount", "--bind", beside, path)
    try:
        refresh(lab)
        yield
    finally:
        lab.run("master", "umount", path)
        refresh(lab)


def refresh(lab):
    """Functions between two runs go by what a host was told last."""
    lab.salt(among(running(lab)), "saltutil.refresh_pillar", "wait=True")


def running(lab):
    return sorted(host.name for host in lab.lab.running())


def among(hosts):
    """A target: these hosts."""
    return f"L@{','.join(hosts)}"
