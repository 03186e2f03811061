"""
Each rendered configuration passes its own daemon's check.

The check is the very one that the state makes on a host (`check_cmd`), run where the file belongs,
in a sandbox that holds all files of the host; for files whose states check nothing it is `JUDGES`.
Files are those of the system that the tests run on, since that is whose daemons are here.
"""

import fnmatch
import textwrap

from tests.lab import machine
from tests.render import matrix, sandbox
from tests.render.conftest import none

VERIFY_UNIT = "systemd-analyze verify --man=no --recursive-errors=no"
# Which program judges a file that its state writes without a check of its own; {} is the file.
JUDGES = {
    "*.json": "python3 -m json.tool {}",
    "*.py": "python3 -m py_compile {}",
    "/etc/haproxy/haproxy.cfg": "haproxy -c -q -f {}",
    "/etc/keepalived/*.conf": "keepalived --config-test --use-file {}",
    "/etc/nftables*": "nft --check --file {}",
    "/etc/nginx/nginx.conf": "nginx -t -q -c {}",
    "/etc/chrony/sources.d/*": "grep -qE '^(#|server )' {}",
    "/etc/rsyslog.conf": "rsyslogd -N1 -f {}",
    "/etc/ssh/sshd_config*": "sshd -t -f {}",
    "/etc/sudoers.d/*": "visudo -cf {}",
    "/etc/systemd/system/*.d/*.conf": f"{VERIFY_UNIT} {{unit}}",
    "/etc/systemd/system/*.service": f"{VERIFY_UNIT} {{}}",
    "/etc/systemd/system/*.socket": f"{VERIFY_UNIT} {{}}",
    "/etc/systemd/system/*.timer": f"{VERIFY_UNIT} {{}}",
    "/etc/tmpfiles.d/*.conf": "systemd-tmpfiles --create {}",
    # An emperor can only be started: it is well if it runs until timeout(1) ends it.
    "/etc/uwsgi/emperor.ini": "timeout 1 uwsgi --strict --ini {}; test $? -eq 124",
    "/etc/uwsgi/*.ini": "uwsgi --strict --no-server --ini {}",
    "/etc/varnish/*.vcl": "varnishd -n /run/saltern-vcl -C -f {}",
}
# By first line: what a script is run with checks that it can be read.
SCRIPTS = {"sh": "sh -n {}", "bash": "bash -n {}", "python3": "python3 -m py_compile {}"}
# Nobody judges these: there is no program that would, or it reads them only while it runs.
UNJUDGED = {
    "/etc/hostname": "a name",
    "/etc/hosts": "no syntax that could be wrong without the template being wrong",
    "/etc/sysctl.d/60-saltern.conf": "the state that puts it in force says what the kernel refuses",
    "/etc/systemd/journald.conf.d/*": "journald warns of what it doesn't know, and goes on",
    "*/.env": "variables for Django, which the site's settings read",
    "*.http": "a whole answer, sent byte by byte",
    "*.html": "a page",
    "/etc/varnish/pages/*": "judged with the VCL that includes it",
    "*/.pgpass": "libpq skips lines that it doesn't understand",
    "/etc/postgresql-common/createcluster.conf": "read by pg_createcluster, which has no check",
    "*/tls/authority.key": "judged by openssl when it signs with it",
    "/etc/saltern/backup.*": "read by saltern-backup, which the farm tests run",
    "/etc/saltern/uploads.*": "read by restic and rclone, which the farm tests run",
    "/etc/pgbouncer/userlist.txt": "judged with the settings that name it",
    # RabbitMQ, which has no check, and Erlang below it: a tenth of a gigabyte that only they need.
    "/etc/rabbitmq/*": "the farm tests start it",
    "/var/lib/rabbitmq/*": "the farm tests start it",
    "/etc/systemd/system/rabbitmq-server.service.d/*": "the farm tests start it",
    "/etc/systemd/system/epmd.*": "the farm tests start it",
    # The package with its unit would start a server; its programs alone are enough elsewhere.
    "/etc/systemd/system/mariadb.service.d/*": "the farm tests start it",
    "/etc/saltern/mariadb-*": "read by its client and by saltern-backup, which the tests run",
    "/etc/mysql/saltern-*": "read by stunnel, which has no check; the farm tests copy with it",
    "/etc/redis/*.acl": "judged with the settings that name it",
}
# What the states do by commands before a file of theirs can be checked.
PREPARE = {
    "/etc/haproxy/haproxy.cfg": ["saltern-certificates --first"],
    "/etc/rsyslog.conf": ["sh /usr/local/lib/saltern/identity /etc/rsyslog/tls host root"],
    "/etc/saltern/sshd_config": ["ssh-keygen -A", "mkdir -p /run/sshd"],
    # Debian's package makes this certificate when it is installed; images come without it.
    "/etc/pgbouncer/pgbouncer.ini": ["make-ssl-cert generate-default-snakeoil"],
}


def _system():
    """The system that the tests run on, if the matrix knows it."""
    codename = machine.os_release().get("VERSION_CODENAME")
    return codename if codename in matrix.SYSTEMS else "bookworm"


# Sizes differ in numbers only: all of them where all daemons share a host, one of them elsewhere.
HOSTS = [
    name
    for name in matrix.hosts()
    if name[3] == _system() and (name[0] == "onebox" or name[2] == "1G")
]


def test_daemons_accept_their_configuration(host):
    none(f"{check}\n{textwrap.indent(said, '    ')}" for check, said in _refused(host))


def test_each_file_is_judged(host):
    none(
        f"{file.path} of {file.state}: nothing checks it. Give its state a check_cmd, or name its "
        "judge in tests/render/test_configurations.py."
        for file in host.files
        if not _judge(file) and not _matching(UNJUDGED, file.path)
    )


def test_the_programs_that_judge_are_installed():
    missing = machine.missing(machine.PACKAGES["render"])
    assert not missing, f"apt-get install {' '.join(missing)}"


# What was said of a content by its check: each is judged once, whatever hosts have it.
_told = {}


def _refused(host):
    """The checks of a host's files that failed, and what they said."""
    judged = [(file, _judge(file)) for file in host.files]
    keys = {(command, file.text): file for file, command in judged if command}
    new = {key: file for key, file in keys.items() if key not in _told}
    if new:
        checks = [command for command, _ in new]
        _told.update(zip(new, sandbox.run(_plan(host, checks, new.values())), strict=True))
    for key in keys:
        code, said, _ = _told[key]
        if code:
            yield key[0], f"exit code {code}\n{said}"


def _plan(host, checks, checked):
    made = {(c["state"], c["fun"], c["name"]) for c in host.chunks}
    owners = {owner for file in host.files for owner in (file.user, file.group)}
    return {
        "address": host.address,
        "users": sorted(owners | {name for *state, name in made if state == ["user", "present"]}),
        "folders": sorted(name for *state, name in made if state == ["file", "directory"]),
        "files": [_placed(file) for file in host.files],
        "prepare": [c for file in checked for c in _matching(PREPARE, file.path) or []],
        "checks": checks,
    }


def _placed(file):
    return {name: getattr(file, name) for name in ("path", "text", "mode", "user", "group")}


def _judge(file):
    """The command that judges a file, as the state would run it."""
    if file.check:
        if not file.suffix:
            return f"{file.check} {file.path}"
        copied = f"/tmp/check{file.suffix}"
        return f"cp {file.path} '{copied}' && {file.check} '{copied}'"
    if _matching(UNJUDGED, file.path):
        return None
    command = _matching(JUDGES, file.path) or _script(file.text)
    unit = file.path.rpartition("/")[0].rpartition("/")[2].removesuffix(".d")
    return command and command.format(file.path, unit=unit.replace("@.", "@1."))


def _script(text):
    first = text.partition("\n")[0]
    if not first.startswith("#!"):
        return None
    return SCRIPTS.get(first.split()[-1].rpartition("/")[2])


def _matching(table, path):
    return next((value for pattern, value in table.items() if fnmatch.fnmatch(path, pattern)), None)
