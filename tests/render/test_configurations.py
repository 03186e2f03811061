"""
Each rendered configuration passes its own daemon's check.

The check is the very one that the state makes on a host (`check_cmd`), run where the file belongs,
in a sandbox that holds all files of the host; for files whose states check nothing it is `JUDGES`.
Files are those of the system that the tests run on, since that is whose daemons are here.
"""

import fnmatch
import hashlib
import shutil
import textwrap

import pytest

from tests.lab import machine
from tests.render import hosts, matrix, sandbox
from tests.render.conftest import none

# Which program judges a file that its state writes without a check of its own; {} is the file.
JUDGES = {
    "*.json": "python3 -m json.tool {}",
    "*.py": "python3 -m py_compile {}",
    "/etc/haproxy/haproxy.cfg": "haproxy -c -q -f {}",
    "/etc/keepalived/*.conf": "keepalived --config-test --use-file {}",
    "/etc/nftables*": "nft --check --file {}",
    "/etc/nginx/nginx.conf": "nginx -t -q -c {}",
    "/etc/rsyslog.conf": "rsyslogd -N1 -f {}",
    "/etc/ssh/sshd_config*": "sshd -t -f {}",
    "/etc/sudoers.d/*": "visudo -cf {}",
    "/etc/systemd/system/*.service": "systemd-analyze verify {}",
    "/etc/systemd/system/*.timer": "systemd-analyze verify {}",
    "/etc/tmpfiles.d/*.conf": "systemd-tmpfiles --create {}",
    "/etc/uwsgi/*.ini": "uwsgi --strict --no-server --ini {}",
    "/etc/varnish/*.vcl": "varnishd -n /run/saltern-vcl -C -f {}",
}
# By first line: what a script is run with checks that it can be read.
SCRIPTS = {"sh": "sh -n {}", "bash": "bash -n {}", "python3": "python3 -m py_compile {}"}
# Nobody judges these: there is no program that would, or it reads them only while it runs.
UNJUDGED = {
    "/etc/hosts": "no syntax that could be wrong without the template being wrong",
    "*/.env": "variables for Django, which the site's settings read",
    "*.http": "a whole answer, sent byte by byte",
    "*.html": "a page",
    "*/.pgpass": "libpq skips lines that it doesn't understand",
    "/etc/postgresql-common/createcluster.conf": "read by pg_createcluster, which has no check",
    "/etc/systemd/system/*.d/*.conf": "systemd reads a drop-in only beside its unit",
    "/etc/pgbouncer/userlist.txt": "judged with the settings that name it",
    "/etc/rabbitmq/*": "RabbitMQ has no check; the farm tests start it",
    "/var/lib/rabbitmq/*": "RabbitMQ has no check; the farm tests start it",
    "/etc/redis/*.acl": "judged with the settings that name it",
}
# What the states do by commands before a file of theirs can be checked.
PREPARE = {
    "/etc/haproxy/haproxy.cfg": ["saltern-certificates --first"],
}
# Programs whose absence is told by the name of the package that brings them.
PACKAGES = {
    "haproxy": "haproxy",
    "keepalived": "keepalived",
    "nft": "nftables",
    "nginx": "nginx-light",
    "nutcracker": "nutcracker",
    "openssl": "openssl",
    "redis-server": "redis-server",
    "rsyslogd": "rsyslog",
    "sshd": "openssh-server",
    "systemd-analyze": "systemd",
    "uwsgi": "uwsgi-core and uwsgi-plugin-python3",
    "varnishd": "varnish",
    "visudo": "sudo",
}


def _system():
    """The system that the tests run on, if the matrix knows it."""
    codename = machine.os_release().get("VERSION_CODENAME")
    return codename if codename in matrix.SYSTEMS else "bookworm"


HOSTS = [name for name in matrix.hosts() if name[3] == _system()]


def test_daemons_accept_their_configuration(host):
    none([f"{check}\n{textwrap.indent(said, '    ')}" for check, said in _refused(host)])


def test_each_file_is_judged(host):
    none(
        f"{file.path} of {file.state}: nothing checks it. Give its state a check_cmd, or name its "
        "judge in tests/render/test_configurations.py."
        for file in host.files
        if not _judge(file) and not _matching(UNJUDGED, file.path)
    )


def test_the_programs_that_judge_are_installed():
    missing = {package for program, package in PACKAGES.items() if not shutil.which(program)}
    assert not missing, f"apt-get install {' '.join(sorted(missing))}"


_accepted = set()


def _refused(host):
    """The checks of a host's files that failed, and what they said; each content is judged once."""
    checks = {}
    for file in host.files:
        command = _judge(file)
        key = hashlib.sha256(f"{command}\0{file.text}".encode()).digest()
        if command and key not in _accepted:
            checks[key] = command
    if not checks:
        return
    plan = {
        "address": host.address,
        "users": sorted({c["name"] for c in host.chunks if (c["state"], c["fun"]) == USER}),
        "folders": _folders(host),
        "files": [_placed(file) for file in host.files],
        "prepare": [c for file in host.files for c in PREPARE.get(file.path, [])],
        "checks": list(checks.values()),
    }
    for (key, command), (code, said, _) in zip(checks.items(), sandbox.run(plan), strict=True):
        if code:
            yield command, f"exit code {code}\n{said}"
        else:
            _accepted.add(key)


USER = ("user", "present")


def _folders(host):
    return [c["name"] for c in host.chunks if (c["state"], c["fun"]) == ("file", "directory")]


def _placed(file):
    return {name: getattr(file, name) for name in ("path", "text", "mode", "user", "group")}


def _judge(file):
    """The command that judges a file, as the state would run it."""
    if file.check:
        if not file.suffix:
            return f"{file.check} {file.path}"
        copied = f"/tmp/check{file.suffix}"
        return f"cp {file.path} '{copied}' && {file.check} '{copied}'"
    command = _matching(JUDGES, file.path) or _script(file.text)
    return command and command.format(file.path)


def _script(text):
    first = text.partition("\n")[0]
    if not first.startswith("#!"):
        return None
    return SCRIPTS.get(first.split()[-1].rpartition("/")[2])


def _matching(table, path):
    return next((value for pattern, value in table.items() if fnmatch.fnmatch(path, pattern)), None)
