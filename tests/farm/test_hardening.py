"""Hosts as one who wants to get in finds them: SSH, accounts, sandboxes, the kernel, the audit."""

import json
import pathlib
import re
import subprocess
import sys
import time

import pytest

from tests.farm.waiting import until
from tests.lab import network

HOST, ADDRESS = "lb2", "198.18.0.12"
# How exposed a unit of ours may be at most, by `systemd-analyze security`: 10 is no sandbox at all.
EXPOSURE = {
    "app1": {"uwsgi.service": 4.0, "saltern-uploads@newsroom.service": 3.0},
    "lb1": {"saltern-certificates.service": 3.0},
    "cache1": {"saltern-varnish-log.service": 2.0},
    "worker1": {"celery-newsroom-*.service": 3.0},
    "backup1": {"saltern-backup@seal.service": 4.0, "saltern-uploads-server.service": 3.0},
}


@pytest.fixture
def operator(tmp_path):
    """A key pair: the pillar of an operator named grace; the words that log in as somebody."""
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    public = key.with_suffix(".pub").read_text().strip()

    def command(name, *words):
        return [
            "ssh", "-F", "none", "-i", str(key), "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes",
            "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
            "-o", "LogLevel=ERROR", f"{name}@{ADDRESS}", *words,
        ]  # fmt: skip

    return {"operators": {"grace": {"keys": [public]}}}, command


def greeting(lab, address, port):
    """What a port says first to a client on the network; nothing if it can't be reached."""
    said = lab.on_hub("timeout", "5", "bash", "-c", f"head -c 7 </dev/tcp/{address}/{port}")
    return said.stdout.decode()


def test_an_operator_logs_in_by_key_becomes_root_and_leaves_for_good(lab, operator):
    pillar, command = operator
    lab.apply(HOST, "accounts,ssh", pillar)
    assert lab.on_hub(*command("grace", "sudo", "-n", "id", "-u")).stdout == b"0\n"
    assert b"publickey" in lab.on_hub(*command("root", "true")).stderr
    assert b"publickey" in lab.on_hub(*command("ada", "true")).stderr  # it isn't her key

    session = subprocess.Popen(
        network.on_hub(lab.lab.name, command("grace", "sudo", "sleep", "4000")),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 30
        while lab.run(HOST, "pgrep", "-f", "sleep 4000", check=False).returncode:
            assert time.monotonic() < deadline, "the session never began"
            time.sleep(0.2)
        assert lab.salt(HOST, "accounts.leavers") == {HOST: {"grace": False}}
        lab.apply(HOST, "accounts,ssh")
        assert session.wait(30) != 0
    finally:
        session.kill()
        session.wait()
    assert lab.run(HOST, "pgrep", "-f", "sleep 4000", check=False).returncode
    assert lab.run(HOST, "getent", "passwd", "grace", check=False).returncode
    assert "grace" not in lab.run(HOST, "cat", "/etc/sudoers.d/saltern").stdout
    assert lab.run(HOST, "ls", "/etc/ssh/authorized_keys.d").stdout.split() == ["ada"]
    assert lab.run(HOST, "stat", "-c", "%U %a", "/home/grace").stdout == "root 700\n"
    assert lab.on_hub(*command("grace", "true")).returncode == 255
    lab.run(HOST, "rm", "-r", "/home/grace")


def test_an_operator_may_not_take_the_name_of_an_account_of_the_system(lab):
    bad = {"operators": {"haproxy": {"keys": []}, "Ada Lovelace": {}}}
    said = lab.apply(HOST, "accounts", bad, fails=True)
    assert "operators.haproxy is an account of the system's own: choose another name." in said
    assert "operators.Ada Lovelace isn't a name for an account" in said


def test_only_operators_may_log_in(lab, operator):
    """Somebody has an account and a key, and is no operator."""
    pillar, command = operator
    keys = "/etc/ssh/authorized_keys.d/stranger"
    lab.run(HOST, "useradd", "--create-home", "--shell", "/bin/sh", "stranger")
    try:
        lab.run(HOST, "tee", keys, stdin=pillar["operators"]["grace"]["keys"][0] + "\n")
        assert b"publickey" in lab.on_hub(*command("stranger", "true")).stderr
        log = ["journalctl", "-q", "-u", "ssh", "--since=-60s"]
        until(30, lambda: "User stranger " in lab.run(HOST, *log).stdout)
        assert "not listed in AllowUsers" in lab.run(HOST, *log).stdout
    finally:
        lab.run(HOST, "userdel", "--remove", "stranger", check=False)
        lab.run(HOST, "rm", "-f", keys)


@pytest.mark.drill
def test_a_site_has_no_shell_and_writes_its_uploads_only(lab):
    user = "site-newsroom"
    assert lab.run("app1", "getent", "passwd", user).stdout.strip().endswith(":/usr/sbin/nologin")
    look = ["find", "/srv", "/etc", "/opt", "/usr/local", "/home", "/root", "-writable"]
    look += ["!", "-type", "l"]
    found = lab.run("app1", "runuser", "-u", user, "--", *look, check=False).stdout.splitlines()
    media = "/srv/sites/newsroom/shared/media"
    assert media in found
    assert [path for path in found if not f"{path}/".startswith(f"{media}/")] == []


def test_root_has_no_password(lab):
    for name in lab.hosts:
        shadow = lab.run(name, "grep", "^root:", "/etc/shadow").stdout
        assert shadow.split(":")[1] == "*", name


def test_ssh_that_would_not_answer_stays_as_it_was(lab):
    """The port that is asked for belongs to the accelerator."""
    before = lab.run("cache2", "cat", "/etc/ssh/sshd_config").stdout
    taken = {"overrides": {"ssh": {"port": 6081}}}
    said = lab.apply("cache2", "ssh", taken, fails=True)
    assert "sshd doesn't answer on port 6081" in said
    assert lab.run("cache2", "cat", "/etc/ssh/sshd_config").stdout == before
    assert greeting(lab, lab.hosts["cache2"].address, 22) == "SSH-2.0"
    lab.apply("cache2", "ssh")


def test_ssh_moves_to_another_port_and_back(lab):
    lab.apply(HOST, "ssh,firewall", {"overrides": {"ssh": {"port": 2222}}})
    assert greeting(lab, ADDRESS, 2222) == "SSH-2.0"
    assert greeting(lab, ADDRESS, 22) == ""
    lab.apply(HOST, "ssh,firewall")
    assert greeting(lab, ADDRESS, 22) == "SSH-2.0"
    assert greeting(lab, ADDRESS, 2222) == ""


def scanned(lab, address):
    """The fingerprints that an SSH server shows a client on the network, by kind of key."""
    keys = lab.on_hub("ssh-keyscan", "-T", "5", "-t", "ecdsa,ed25519,rsa", address).stdout
    shown = subprocess.run(
        ["ssh-keygen", "-l", "-f", "-"], input=keys, capture_output=True, check=False
    )
    lines = shown.stdout.decode().splitlines()
    return {line.split()[-1].strip("()"): line.split()[1] for line in lines}


@pytest.mark.parametrize("host", ["lb1", "cache1", "app1", "worker1", "db1", "backup1"])
def test_a_host_is_known_by_strong_keys_only(lab, host):
    seen = scanned(lab, lab.hosts[host].address)
    assert set(seen) == {"ED25519", "RSA"}
    assert lab.salt(host, "sshd.fingerprints")[host] == seen
    keys = lab.salt(host, "sshd.host_keys")[host].values()
    assert {key["kind"]: key["bits"] for key in keys}["RSA"] >= 3072
    assert [key["weak"] for key in keys if key["weak"]] == []


def test_a_weak_key_makes_way_and_a_good_one_stays(lab):
    file = "/etc/ssh/ssh_host_rsa_key"
    before = scanned(lab, ADDRESS)
    lab.run(HOST, "cp", "-a", file, f"{file}.kept")
    lab.run(HOST, "cp", "-a", f"{file}.pub", f"{file}.kept.pub")
    short = f"rm {file}; ssh-keygen -q -t rsa -b 2048 -N '' -f {file} && systemctl reload ssh"
    try:
        lab.run(HOST, "sh", "-c", short)
        until(30, lambda: scanned(lab, ADDRESS).get("RSA") not in (None, before["RSA"]))
        failed = lab.salt(HOST, "harden.audit")[HOST]["failed"]
        assert f"{file} is RSA of 2048 bits" in failed["SSH's host keys are strong"]
        lab.apply(HOST, "ssh")
        told = lab.salt(HOST, "sshd.fingerprints")[HOST]
        until(30, lambda: scanned(lab, ADDRESS) == told)
        assert told["ED25519"] == before["ED25519"]
        assert lab.salt(HOST, "sshd.host_keys")[HOST][file]["bits"] == 3072
        states = lab.salt(HOST, "state.apply", "ssh")[HOST]
        assert [state["__id__"] for state in states.values() if state["changes"]] == []
    finally:
        back = f"mv {file}.kept {file}; mv {file}.kept.pub {file}.pub; rm -f {file}.weak"
        lab.run(HOST, "sh", "-c", f"{back}; systemctl reload ssh")
    until(30, lambda: scanned(lab, ADDRESS) == before)


@pytest.mark.parametrize("host", EXPOSURE)
def test_our_units_are_in_a_sandbox(lab, host):
    for pattern, most in EXPOSURE[host].items():
        units = [pattern]
        if "*" in pattern:
            listing = ["systemctl", "list-units", "--plain", "--no-legend", pattern]
            units = [line.split()[0] for line in lab.run(host, *listing).stdout.splitlines()]
        assert units, f"{host} has no unit {pattern}"
        for unit in units:
            said = lab.run(host, "systemd-analyze", "security", "--no-pager", unit).stdout
            exposure = float(re.search(r"exposure level for \S+: ([\d.]+)", said)[1])
            assert exposure <= most, f"{unit}: {exposure}"


def test_the_kernel_follows_and_what_a_container_may_not_set_is_said(lab):
    assert lab.run("app1", "sysctl", "-n", "net.core.somaxconn").stdout == "4096\n"
    assert (
        lab.run("app1", "sysctl", "-n", "net.ipv4.ip_local_port_range").stdout.split()[0] == "26000"
    )
    lab.run("app1", "sysctl", "-w", "net.core.somaxconn=1000")
    states = lab.salt("app1", "state.apply", "os")["app1"]
    (kernel,) = (state for key, state in states.items() if state["__id__"] == "os/kernel")
    assert kernel["changes"] == {"net.core.somaxconn": {"old": "1000", "new": "4096"}}
    assert "Left alone, as they can't be written here: " in kernel["comment"]
    assert "vm.swappiness" in kernel["comment"]


DAEMONS = {
    "lb1": ["haproxy"],
    "cache1": ["varnish", "memcached", "redis-server@session"],
    "app1": ["nginx", "uwsgi", "nutcracker"],
    "worker1": ["rabbitmq-server", "nutcracker"],
    "db1": ["postgresql@15-main", "pgbouncer"],
}


@pytest.mark.parametrize("host", DAEMONS)
def test_daemons_run_with_the_file_limits_of_their_settings(lab, host):
    found = lab.salt(host, "limits.files")[host]
    allowed = lab.salt(host, "grains.get", "hardware")[host]["open_files"]
    assert {f"{name}.service" for name in DAEMONS[host]} <= set(found)
    for unit, told in found.items():
        assert "wrong" not in told, told
        assert told["may"] >= min(told["wanted"], told["unit"], allowed), (unit, told)
        assert ("bounded" in told) == (told["may"] < max(told["wanted"], told["unit"]))
        process = lab.run(host, "systemctl", "show", "-P", "MainPID", unit).stdout.strip()
        family = [process, *lab.run(host, "pgrep", "-P", process, check=False).stdout.split()]
        files = [f"/proc/{one}/limits" for one in family]
        runs = lab.run(host, "cat", *files, check=False).stdout
        limits = map(int, re.findall(r"^Max open files +(\d+)", runs, re.M))
        assert max(limits) == told["may"], unit


def test_a_daemon_under_an_older_limit_is_named(lab):
    unit, point = "nutcracker.service", "daemons may open the files that they should"
    before = lab.salt("app1", "limits.files")["app1"][unit]["may"]
    older = f"/run/systemd/system/{unit}.d/zz-older.conf"
    restart = f"systemctl daemon-reload; systemctl restart {unit}"
    try:
        lab.run("app1", "install", "-D", "/dev/stdin", older, stdin="[Service]\nLimitNOFILE=1000\n")
        # Started with less; its unit has been given more since.
        lab.run("app1", "sh", "-ec", f"{restart}; rm {older}; systemctl daemon-reload")
        wrong = lab.salt("app1", "limits.files")["app1"][unit]["wrong"]
        assert f"{unit} runs with 1000 open files instead of {before}." in wrong
        assert "salt 'app1' service.restart nutcracker" in wrong
        assert wrong in lab.salt("app1", "harden.audit")["app1"]["failed"][point]
    finally:
        lab.run("app1", "sh", "-ec", f"rm -f {older}; {restart}")
    assert point not in lab.salt("app1", "harden.audit")["app1"]["failed"]


def test_the_journal_has_an_end(lab):
    said = lab.run("app1", "journalctl", "-q", "-u", "systemd-journald", "-o", "cat").stdout
    limits = re.findall(r"System Journal \(\S+\) is \S+, max (\S+),", said)
    assert limits[-1] == "1.0G"


def test_a_container_leaves_the_clock_to_its_machine_and_says_so(lab):
    states = lab.salt(HOST, "state.apply", "os")[HOST]
    (clock,) = (state for state in states.values() if state["__id__"] == "os/time")
    assert "has that of its machine" in clock["comment"]
    left = lab.salt(HOST, "harden.audit")[HOST]["left_out"]
    assert left["the clock is right"] == "a container has the clock of its machine"


# So that chrony, which is set up here as on a host of its own, leaves the machine's clock alone.
LOOKS_ONLY = """
mkdir -p /etc/systemd/system/chrony.service.d
printf '[Service]\\nExecStart=\\nExecStart=!/usr/sbin/chronyd -F 1 -x\\n' \\
    >/etc/systemd/system/chrony.service.d/lab.conf
systemctl daemon-reload
"""
TOLD = "/etc/salt/minion.d/lab-time.conf"
NO_CHRONY = f"""
apt-get purge -y -qq chrony >/dev/null
rm -rf /etc/systemd/system/chrony.service.d /etc/chrony {TOLD}
systemctl daemon-reload
"""


@pytest.mark.drill
def test_elsewhere_the_time_comes_from_the_servers_that_are_named(lab):
    """The state as it is for hosts with a clock of their own, and a real chrony that asks."""
    script = pathlib.Path(__file__).with_name("time_server.py")
    address = str(network.HUB_ADDRESS)
    server = subprocess.Popen(network.on_hub(lab.lab.name, [sys.executable, str(script), address]))
    hardware = lab.salt(HOST, "grains.get", "hardware")[HOST]
    named = json.dumps({"overrides": {"os": {"time_servers": [address]}}})

    def applied():
        """Salt as the host itself calls it, told what kind of host it is."""
        command = ["salt-call", "--out=json", "state.apply", "os", f"pillar={named}"]
        return json.loads(lab.run(HOST, *command).stdout)["local"].values()

    try:
        lab.run(HOST, "sh", "-c", LOOKS_ONLY)
        kind = {"grains": {"hardware": {**hardware, "kind": "virtual"}}}
        lab.run(HOST, "tee", TOLD, stdin=json.dumps(kind))
        first = applied()
        assert [state["comment"] for state in first if not state["result"]] == []
        told = until(60, lambda: tracked(lab, address))
        assert told["leap"] == "Normal"
        assert int(told["stratum"]) == 2
        assert abs(float(told["offset"])) < 1
        sources = lab.run(HOST, "chronyc", "-n", "-c", "sources").stdout.splitlines()
        assert [line.split(",")[2] for line in sources] == [address]
        assert [state["__id__"] for state in applied() if state["changes"]] == []
    finally:
        server.terminate()
        server.wait()
        lab.run(HOST, "sh", "-c", NO_CHRONY)
        lab.apply(HOST, "os")


def tracked(lab, address):
    """What chrony says of the time, once it takes it from this address."""
    names = ["id", "address", "stratum", "time", "offset"]
    words = lab.run(HOST, "chronyc", "-n", "-c", "tracking", check=False).stdout.strip().split(",")
    found = dict(zip(names, words, strict=False)) | {"leap": words[-1]}
    return found if found.get("address") == address else None


def test_names(lab):
    for name in ("db1", "worker1"):
        assert lab.run(name, "hostname").stdout.strip() == name
        assert lab.run(name, "getent", "hosts", "app2").stdout.split()[0] == "198.18.0.32"


@pytest.mark.parametrize("host", ["lb1", "cache1", "app1", "worker1", "db1", "backup1"])
def test_every_log_has_an_end(lab, host):
    """What isn't the journal's is rotated by somebody."""
    ends = lab.run(host, "logrotate", "--debug", "/etc/logrotate.conf", check=False)
    known = set(re.findall(r"considering log (\S+)", ends.stdout + ends.stderr))
    listing = ["find", "/var/log", "-type", "f", "-name", "*.log", "-not", "-path", "*/journal/*"]
    logs = set(lab.run(host, *listing).stdout.split()) | {"/var/log/salt/minion"}
    assert not logs - known, f"nobody rotates {logs - known}"


def test_the_audit_passes_and_finds_what_is_wrong(lab):
    for host, found in lab.salt("*", "harden.audit").items():
        assert found["ok"], (host, found["failed"])
        assert len(found["passed"]) >= 12
    lab.run(
        HOST, "sh", "-c", "touch /etc/open; chmod 666 /etc/open; sysctl -qw net.core.somaxconn=99"
    )
    deadline = time.monotonic() + 30
    lab.run(HOST, "systemd-run", "-q", "--unit=stray", "python3", "-m", "http.server", "7777")
    try:
        while ":7777" not in lab.run(HOST, "ss", "-lnt").stdout:
            assert time.monotonic() < deadline, "the stray listener never listened"
        found = lab.salt(HOST, "harden.audit")[HOST]
        failed = found["failed"]
        assert "nobody but root changes the system" in failed
        assert "/etc/open" in found["failed"]["nobody but root changes the system"]
        assert "the kernel is set as it should be" in failed
        assert "Fix: " in found["failed"]["the kernel is set as it should be"]
        assert "7777" in found["failed"]["what listens is declared"]
    finally:
        lab.run(HOST, "rm", "/etc/open")
        lab.run(HOST, "systemctl", "stop", "stray", check=False)
        lab.salt(HOST, "state.apply", "os")
    assert lab.salt(HOST, "harden.audit")[HOST]["ok"]
