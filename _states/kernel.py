"""
Settings of the running kernel.
"""

import os
import pathlib

_PROC = pathlib.Path("/proc/sys")


def tuned(name):
    """
    The running kernel has the settings of a file. What can't be written here, as in a container, or
    doesn't exist in this kernel, is left alone and named.

    name
        The file: lines ``key = value``, as sysctl reads them at boot.

    .. code-block:: yaml

        os/kernel:
          kernel.tuned:
            - name: /etc/sysctl.d/60-saltern.conf
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": f"The kernel follows {name}."}
    wanted, left = _wanted(pathlib.Path(name)), []
    for key, value in wanted.items():
        path = _PROC / key.replace(".", "/")
        now = " ".join(path.read_text().split()) if path.exists() else None
        if now == value:
            continue
        if not os.access(path, os.W_OK):
            left.append(key)
            continue
        ret["changes"][key] = {"old": now, "new": value}
        if not __opts__["test"]:
            try:
                path.write_text(value)
            except OSError as error:
                ret.update(result=False, comment=f"{key} can't be set to {value!r}: {error}")
                del ret["changes"][key]
                return ret
    if __opts__["test"] and ret["changes"]:
        ret.update(result=None, comment=f"The kernel would follow {name}.")
    if left:
        ret["comment"] += f" Left alone, as they can't be written here: {', '.join(left)}."
    return ret


def _wanted(path):
    """The settings of a file; none if it isn't there yet."""
    lines = path.read_text().splitlines() if path.exists() else []
    pairs = [line.split("=", 1) for line in lines if "=" in line and not line.startswith("#")]
    return {key.strip(" -"): " ".join(value.split()) for key, value in pairs}
