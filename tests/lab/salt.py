"""What runs on the lab's master: minions, the published example, states, releases."""

import json
import subprocess
import time

from tests.lab import cgroups, output
from tests.lab.commands import LabError
from tests.lab.host import CHECKOUT

MINIONS_TIMEOUT = 300
# Asking minions that are at work whether they still are costs them more than it tells us.
PATIENCE = ["--timeout=300"]
SITE = "newsroom"
EXAMPLE = f"examples/{SITE}"
REPOSITORY = f"/srv/git/{SITE}.git"
SERVED_AS = f"git://master/{SITE}.git"
# Which hosts get releases, by role: the app hosts first, as they migrate the database.
SHIPPED_TO = {"app": "app*", "worker": "worker*"}
# Roles that show a site's error pages where no app host answers.
IN_FRONT = {"loadbalancer", "accelerator"}
GIT_UNIT = """\
[Unit]
Description=The git repositories of the lab, read-only
After=network.target

[Service]
User=nobody
ExecStart=/usr/bin/git daemon --base-path=/srv/git --export-all --reuseaddr /srv/git
Restart=on-failure

[Install]
WantedBy=multi-user.target
"""
# Salt reads master.d and minion.d only where these files exist.
EMPTY = "# What this host is told is in the folder beside this file.\n"
# A commit only where something changed; the index stays in the bare repository.
PUBLISH = f"""
set -e
[ -f {REPOSITORY}/HEAD ] || git init --quiet --bare --initial-branch=main {REPOSITORY}
export GIT_DIR={REPOSITORY} GIT_WORK_TREE={CHECKOUT}/{EXAMPLE}
git() {{ command git -c core.bare=false -c user.name=lab -c user.email=lab@localhost "$@"; }}
git -c core.excludesFile={CHECKOUT}/.gitignore add --all "$GIT_WORK_TREE"
git rev-parse --quiet --verify HEAD >/dev/null && git diff --cached --quiet ||
  git commit --quiet -m "The site as it is in the checkout"
git log -1 --format=%h
"""


def set_up_minion(lab, host):
    """Write a minion's configuration and keys on a fresh disk; tell the master its key."""
    private, public = lab.keys(host.name)
    own = (lab.checkout / "etc/salt/minion").read_text()
    host.write("etc/salt/minion_id", host.name)
    host.write("etc/salt/minion", EMPTY)
    host.write("etc/salt/minion.d/saltern.conf", own)
    host.write("etc/salt/minion.d/lab.conf", f"master: {lab.hosts['master'].address}\n")
    host.write("etc/salt/pki/minion/minion.pem", private, 0o400)
    host.write("etc/salt/pki/minion/minion.pub", public)
    host.write("etc/salt/pki/minion/minion_master.pub", lab.keys("salt-master")[1])
    enable(host, "salt-minion.service")
    master = lab.hosts["master"]
    if master.has_disk():
        master.insert_disk()
        master.write(f"etc/salt/pki/master/minions/{host.name}", public)


def set_up_master(lab, host):
    """Write the master's configuration and keys on a fresh disk, and all that it knows."""
    private, public = lab.keys("salt-master")
    host.write("etc/salt/master", EMPTY)
    (host.root / "etc/salt/master.d").mkdir()
    (host.root / "etc/salt/master.d/saltern.conf").symlink_to(f"{CHECKOUT}/etc/salt/master")
    host.write("etc/salt/pki/master/master.pem", private, 0o400)
    host.write("etc/salt/pki/master/master.pub", public)
    for other in lab.hosts.values():
        if other is host or other.has_disk():
            host.write(f"etc/salt/pki/master/minions/{other.name}", lab.keys(other.name)[1])
    host.write("etc/systemd/system/lab-git.service", GIT_UNIT)
    # git daemon, which isn't the owner, looks at a repository as ".": naming its path won't do.
    host.write("etc/gitconfig", "[safe]\n\tdirectory = *\n")
    (host.root / "srv/git").mkdir(parents=True)
    for unit in ("salt-master.service", "lab-git.service"):
        enable(host, unit)


def enable(host, unit):
    """Have a unit start at boot."""
    wants = host.root / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir(parents=True, exist_ok=True)
    (wants / unit).symlink_to(f"/etc/systemd/system/{unit}")


def wait_for_minions(lab, hosts):
    """Wait until the minions of these hosts answer the master."""
    if not hosts:
        return
    names = [host.name for host in hosts]
    deadline = time.monotonic() + MINIONS_TIMEOUT
    with output.step("waiting for the minions", len(names)) as step:
        while True:
            up = answering(lab, names)
            silent = [name for name in names if name not in up]
            step.done = len(names) - len(silent)
            if not silent:
                return
            if time.monotonic() > deadline:
                raise LabError(
                    f"These minions don't answer the master: {', '.join(silent)}. "
                    f"Look with ./lab run {silent[0]} journalctl -u salt-minion"
                )
            time.sleep(0.5)


def answering(lab, names):
    """
    Which of these minions answer the master now.

    `salt` would wait for those that don't as long as the master's configuration says: a minute.
    """
    patience = ["timeout=3", "gather_job_timeout=3"]
    command = ["salt-run", "--out=json", "manage.up", f"tgt={','.join(names)}", "tgt_type=list"]
    done = lab.hosts["master"].run(*command, *patience, check=False)
    output.log(done.stderr)
    try:
        return json.loads(done.stdout)
    except ValueError:
        output.log(done.stdout)
        return []


def publish_example(lab):
    """Commit the example site into the master's git repository, if it changed."""
    with output.step(f"publishing {EXAMPLE} as {SERVED_AS}") as step:
        done = lab.hosts["master"].run("sh", "-s", stdin=PUBLISH)
        step.detail = done.stdout.strip()


def converge(lab):
    """``state.apply`` on every host that is on."""
    hosts = [host.name for host in lab.running()]
    with output.step("sending the modules out", len(hosts)) as step:
        follow(lab, step, hosts, "*", "saltutil.sync_all")
    with output.step("salt '*' state.apply", len(hosts)) as step:
        follow(lab, step, hosts, "*", "state.apply")


def ship(lab):
    """
    ``deploy.ship`` on the hosts that run the sites' code; its error pages for those in front;
    content for the example site.
    """
    hosts = lab.running()
    for role, target in SHIPPED_TO.items():
        names = [host.name for host in hosts if role in host.roles]
        if names:
            with output.step(f"salt '{target}' deploy.ship", len(names)) as step:
                follow(lab, step, names, target, "deploy.ship")
    apps = [host.name for host in hosts if "app" in host.roles]
    front = [host.name for host in hosts if IN_FRONT & set(host.roles)]
    if apps and front:
        target = f"L@{','.join(front)}"
        with output.step(f"salt -C {target} pages.bring", len(front)) as step:
            follow(lab, step, front, target, "pages.bring")
    if apps and lab.sites().get(SITE, {}).get("repository") == SERVED_AS:
        with output.step(f"salt {apps[0]} deploy.manage {SITE} seed", 1) as step:
            follow(lab, step, apps[:1], apps[0], "deploy.manage", SITE, "seed")


def call(lab, target, function, *arguments, options=()):
    """
    Call a function on minions.

    options
        More options for ``salt``, such as ``-L``.

    Returns what each minion answered, by its id; nothing for the silent.
    """
    command = ["salt", "--out=json", "--static", "--no-color", *options, target, function]
    done = lab.hosts["master"].run(*command, *arguments, check=False)
    output.log(done.stderr)
    try:
        return json.loads(done.stdout)
    except ValueError:
        output.log(done.stdout)
        return {}


def follow(lab, step, hosts, target, function, *arguments):
    """Call a function, count the hosts as they answer, and raise with what went wrong."""
    command = ["env", "PYTHONUNBUFFERED=1"]  # else the answers come all at once, at the end
    command += ["salt", "--out=json", "--out-indent=-1", "--no-color", *PATIENCE]
    command += ["-C", target, function, *arguments]
    wrong, answered = [], set()
    process = subprocess.Popen(
        lab.hosts["master"].inside(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=output.log_file(),
        text=True,
        preexec_fn=lambda: cgroups.join(lab.name, "master"),
    )
    for line in process.stdout:
        try:
            answers = json.loads(line)
        except ValueError:
            output.log(line)
            continue
        for name, answer in answers.items():
            output.log(f"{name}: {json.dumps(answer, indent=1)}")
            wrong += [f"{name}: {what}" for what in failures(answer)]
            answered.add(name)
            step.advance(name)
    code = process.wait()
    wrong += [f"{name}: no answer" for name in hosts if name not in answered]
    if not wrong and code:
        wrong = [f"salt ended with {code}"]
    if wrong:
        raise LabError(
            f"salt '{target}' {function} failed:\n  "
            + "\n  ".join(wrong)
            + f"\nThe hosts stay up to look at. Full output: {output.log_name()}"
        )


def failures(answer):
    """What went wrong, in one line each, in what a minion answered."""
    if isinstance(answer, list):
        return [str(line) for line in answer]
    if isinstance(answer, str):
        return [answer.strip().splitlines()[0]] if _is_failure(answer) else []
    if answer is False:
        return ["no answer"]
    if not isinstance(answer, dict):
        return []
    if answer.get("result") is False:
        return [str(answer.get("comment", "it failed"))]
    failed = [
        (key.split("_|-")[1], " ".join(str(value.get("comment", "")).split()))
        for key, value in answer.items()
        if "_|-" in key and value.get("result") is False
    ]
    causes = [(name, said) for name, said in failed if "requisite failed" not in said]
    return [f"{name}: {said}" for name, said in causes or failed]


def _is_failure(text):
    signs = ("ERROR", "Minion did not return", "Passed invalid", "The minion function")
    return text.startswith(signs)


def returned(printed):
    """
    What each host returned to ``salt --out=json``, which prints a document for each as it comes.

    With ``--static`` it prints one for all, and keeps a tenth of a core busy until then.
    """
    found, decoder = {}, json.JSONDecoder()
    while printed := printed.lstrip():
        document, end = decoder.raw_decode(printed)
        found |= document
        printed = printed[end:]
    return found
