"""
Releases of a site on this host: what git and the package tools make, before anything runs it.

A release is the code of one commit in ``releases/<name>``; its name is the commit's time and SHA,
the same on every host. Its dependencies are in a virtualenv that releases with the same
requirements share. Everything is built by the site's builder, and complete before it gets its
name. What is known of a release stands in ``deploy/releases/<name>.json``, which only root writes.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import time

from salt.exceptions import CommandExecutionError

_SHA = re.compile(r"[0-9a-f]{40}")
_NAME = re.compile(r"\d{8}-\d{6}-[0-9a-f]{8}")
_PASSWORD = re.compile(r"\w+://[^/@]*:[^/@]*@")
_TOOL = "django/files/release.py"
_UV_PATH = "/opt/saltern/uv/bin:/usr/local/bin:/usr/bin"


def fetch(site, rev):
    """
    Fetch a revision of a site's repository into its mirror on this host.

    site
        The site's name.
    rev
        A branch, a tag or a SHA (7 digits or more).

    Returns ``release``, ``sha``, ``committed`` (seconds since 1970) and ``subject``. A full SHA
    that is here already is not looked for elsewhere. Raises ``CommandExecutionError`` if the
    repository can't be reached or has no such revision.

    CLI Example:

    .. code-block:: bash

        salt 'app1' release.fetch newsroom main
    """
    facts = __salt__["sites.get"](site)
    repo = __salt__["sites.paths"](site)["repo"]
    if not pathlib.Path(repo, "HEAD").exists():
        _git(site, ["init", "--quiet", "--bare", repo], task="git init")
    found = _commit(site, rev) if _SHA.fullmatch(rev) else None
    if not found:
        _fetch_all(site, facts, rev)
        found = _resolve(site, rev)
    sha, committed, subject = found
    name = time.strftime("%Y%m%d-%H%M%S", time.gmtime(int(committed))) + f"-{sha[:8]}"
    return {"release": name, "sha": sha, "committed": int(committed), "subject": subject[:100]}


def build(site, fetched, force=False):
    """
    Check out a fetched revision and make, or find, the virtualenv that it needs.

    site
        The site's name.
    fetched
        What :func:`fetch` returned.
    force
        Build again what is complete already.

    Returns what is known of the release (see :func:`info`), and ``built`` and ``installed``:
    whether the code and the virtualenv are new. Raises ``CommandExecutionError`` with the last
    lines of what failed.

    CLI Example:

    .. code-block:: bash

        salt 'app1' release.build newsroom "$(salt --out=newline_values_only app1 release.fetch …)"
    """
    known = info(site, fetched["release"])
    whole = known and pathlib.Path(known["code"]).is_dir() and _complete(known["virtualenv"])
    if whole and not force:
        return {**known, "built": False, "installed": False}
    facts = __salt__["sites.get"](site)
    where = f"{__salt__['sites.paths'](site)['releases']}/{fetched['release']}"
    beside = f"{where}.new-{os.getpid()}"
    _sweep(site)
    try:
        _check_out(site, facts, fetched["sha"], beside)
        folder = _folder(facts, beside, fetched["sha"])
        virtualenv, installed = _virtualenv(site, facts, folder, fetched["sha"], force)
        __salt__["commands.run"](site, ["ln", "-sfn", virtualenv, f"{beside}/.venv"], build=True)
        shutil.rmtree(where, ignore_errors=True)
        pathlib.Path(beside).rename(where)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    _flush(where)
    found = {
        "release": fetched["release"],
        "sha": fetched["sha"],
        "committed": fetched["committed"],
        "subject": fetched["subject"],
        "root": where,
        "code": _folder(facts, where, fetched["sha"]),
        "static": f"{where}/.saltern/static",
        "virtualenv": virtualenv,
        "at": int(time.time()),
    }
    note(site, fetched["release"], found)
    return {**found, "built": True, "installed": installed}


def tool(site, release, action, options, timeout=1800, task=None):
    """
    Run one action of ``salt/django/files/release.py`` with a release's own Python and code.

    site
        The site's name.
    release
        The release's name.
    action
        ``prepare``, ``pending`` or ``migrate``.
    options
        A dictionary that the action reads. It shows in the process list: no secrets.
    timeout
        Seconds.
    task
        What is done, for the error message.

    Returns the action's result, a dictionary. Raises ``CommandExecutionError`` with its last lines.

    CLI Example:

    .. code-block:: bash

        salt 'app1' release.tool newsroom 20260102-030405-1a2b3c4d pending '{}'
    """
    known = must(site, release)
    output = __salt__["commands.run"](
        site,
        [f"{known['virtualenv']}/bin/python", "-", action, json.dumps(options)],
        # Only collecting files asks for the right to write; migrations are the site's own work.
        build=action == "prepare",
        env=_past_pooler(environment(site, release)),
        cwd=known["code"],
        stdin=__salt__["settings.source"](_TOOL),
        timeout=timeout,
        task=task or action,
    )
    if action == "prepare":
        _flush(known["root"], __salt__["sites.paths"](site)["static"])
    return json.loads(output.rpartition("\nsaltern:")[2])


def environment(site, release):
    """
    The environment variables that a site's code gets in a release. They hold secrets.

    site
        The site's name.
    release
        The release's name.

    Returns a dictionary of strings.

    CLI Example:

    .. code-block:: bash

        salt 'app1' release.environment newsroom 20260102-030405-1a2b3c4d
    """
    known = must(site, release)
    return {
        **__salt__["sites.environment"](site),
        "STATIC_ROOT": known["static"],
        "RELEASE": release,
        "VIRTUAL_ENV": known["virtualenv"],
    }


def _past_pooler(variables):
    """The same variables, with the database itself: its locks are lost in a pooler."""
    direct = variables.get("DATABASE_DIRECT_URL", variables.get("DATABASE_URL"))
    return {**variables, "DATABASE_URL": direct} if direct else variables


def list_(site):
    """
    The complete releases of a site on this host.

    site
        The site's name.

    Returns a list of names, the oldest commit first.

    CLI Example:

    .. code-block:: bash

        salt 'app*' release.list newsroom
    """
    folder = pathlib.Path(_notes(site))
    names = (path.stem for path in folder.glob("*.json")) if folder.is_dir() else ()
    return sorted(name for name in names if info(site, name))


def info(site, release):
    """
    What is known of a release on this host.

    site
        The site's name.
    release
        The release's name.

    Returns a dictionary: ``release``, ``sha``, ``committed``, ``subject``, ``root`` (its folder),
    ``code`` (the folder of its manage.py), ``static``, ``virtualenv``, ``at`` (when it was built),
    and what later phases noted: ``prepared``, ``bad``. ``None`` if it isn't here.

    CLI Example:

    .. code-block:: bash

        salt 'app1' release.info newsroom 20260102-030405-1a2b3c4d
    """
    if not _NAME.fullmatch(release or ""):
        return None
    try:
        with open(f"{_notes(site)}/{release}.json", encoding="utf-8") as file:
            known = json.load(file)
    except (FileNotFoundError, ValueError):
        return None
    return known if pathlib.Path(known["root"]).is_dir() else None


def must(site, release):
    """
    What is known of a release, as :func:`info` returns it; an error if it isn't on this host.

    site
        The site's name.
    release
        The release's name.

    CLI Example:

    .. code-block:: bash

        salt 'app1' release.must newsroom 20260102-030405-1a2b3c4d
    """
    known = info(site, release)
    if not known:
        here = ", ".join(list_(site)) or "none"
        raise CommandExecutionError(f"{site} has no release {release!r} here. Releases: {here}.")
    return known


def note(site, release, facts):
    """
    Add to what is known of a release; a value of ``None`` takes a fact away.

    site
        The site's name.
    release
        The release's name.
    facts
        A dictionary.

    CLI Example:

    .. code-block:: bash

        salt 'app1' release.note newsroom 20260102-030405-1a2b3c4d '{bad: "answers 500"}'
    """
    known = {**(info(site, release) or {}), **facts}
    known = {key: value for key, value in known.items() if value is not None}
    folder = pathlib.Path(_notes(site))
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    beside = folder / f"{release}.new"
    with open(beside, "w", encoding="utf-8") as file:
        json.dump(known, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(folder / f"{release}.json")


def changes(site, old, new):
    """
    The commits that lie between two releases.

    site
        The site's name.
    old, new
        Names of releases on this host.

    Returns a list of ``<SHA> <subject>``, the newest first, at most 50.

    CLI Example:

    .. code-block:: bash

        salt 'app1' deploy.plan newsroom
    """
    between = f"{must(site, old)['sha']}..{must(site, new)['sha']}"
    return _git(site, ["log", "--oneline", "--no-decorate", "-n50", between]).splitlines()


def prune(site, keep):
    """
    Remove releases, the virtualenvs and the served files that no other release needs.

    site
        The site's name.
    keep
        Names of the releases that stay.

    Returns the names of what was removed.

    CLI Example:

    .. code-block:: bash

        salt 'app1' deploy.prune newsroom
    """
    paths = __salt__["sites.paths"](site)
    gone = [name for name in list_(site) if name not in keep]
    for name in gone:
        _remove(site, name, info(site, name)["root"])
    kept = [info(site, name) for name in list_(site)]
    used = {pathlib.Path(known["virtualenv"]).name for known in kept}
    for name in _entries(paths["virtualenvs"]):
        if name not in used:
            shutil.rmtree(f"{paths['virtualenvs']}/{name}", ignore_errors=True)
            gone.append(f"virtualenv {name}")
    for name in _entries(paths["releases"]):
        if not pathlib.Path(_notes(site), f"{name}.json").exists():
            shutil.rmtree(f"{paths['releases']}/{name}", ignore_errors=True)
            gone.append(f"unfinished {name}")
    if gone:
        _prune_static(paths["static"], [pathlib.Path(known["static"]) for known in kept])
    return gone


# --- git


def _git(site, command, task=None, env=None, timeout=600, cwd=None):
    return __salt__["commands.run"](
        site,
        ["git", f"--git-dir={__salt__['sites.paths'](site)['repo']}", *command]
        if cwd is None
        else ["git", *command],
        build=True,
        env={"GIT_TERMINAL_PROMPT": "0", "GIT_ADVICE": "0", **(env or {})},
        cwd=cwd,
        timeout=timeout,
        task=task or f"git {command[0]}",
        answer=True,
    )


def _commit(site, name):
    """SHA, time and subject of a commit of the mirror; ``None`` if it has no such name."""
    try:
        shown = _git(site, ["show", "--no-patch", "--format=%H %ct %s", f"{name}^{{commit}}", "--"])
    except CommandExecutionError:
        return None
    return shown.rstrip("\n").split(" ", 2)  # a message may be empty


def _fetch_all(site, facts, rev):
    """Bring the mirror up to date. What an interrupted fetch left behind doesn't stop this one."""
    if not facts["repository"]:
        raise CommandExecutionError(
            f"sites.{site}.repository isn't set in "
            f"pillar/environments/{__pillar__.get('environment')}/sites.yaml."
        )
    if _PASSWORD.match(facts["repository"]):
        raise CommandExecutionError(
            f"sites.{site}.repository holds a password, which every process list would show: leave "
            f"it out of the address and set secrets:sites:{site}:token."
        )
    command = ["fetch", "--quiet", "--force", "--prune", "--no-auto-gc"]
    task = f"Fetching from {facts['repository']}"
    with _credentials(site, facts["repository"]) as env:
        if facts["shallow"]:
            command += ["--depth=1", facts["repository"], *_one(site, facts, rev, task, env)]
        else:
            every = ["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"]
            command += [facts["repository"], *every]
        try:
            _git(site, command, task=task, env=env)
        except CommandExecutionError:
            # The mirror is at fault only if the repository itself answers.
            if not _answers(site, facts["repository"], env):
                raise
            _begin_anew(site)
            _git(site, command, task=task, env=env)


def _one(site, facts, rev, task, env):
    """What to fetch for one revision alone: its branch or its tag, as the repository has it."""
    wanted = [f"refs/{kind}/{rev}" for kind in ("heads", "tags")]
    command = ["ls-remote", "--quiet", "--refs", facts["repository"], *wanted]
    listed = _git(site, command, task=task, env=env).splitlines()
    found = [name for name in wanted if any(line.endswith(f"\t{name}") for line in listed)]
    if _SHA.fullmatch(rev) and not found:
        return [f"+{rev}:refs/heads/{rev}"]
    if not found:
        raise _unknown(site, rev)
    return [f"+{name}:{name}" for name in found]


def _unknown(site, rev):
    return CommandExecutionError(
        f"The repository of {site} has no branch, tag or commit {rev!r}. A revision that looks "
        f"like a number is typed with two pairs of quotes: rev='\"1.10\"'."
    )


def _answers(site, repository, env):
    try:
        _git(site, ["ls-remote", "--quiet", "--exit-code", repository], env=env, timeout=60)
    except CommandExecutionError:
        return False
    return True


def _begin_anew(site):
    """An empty mirror instead of one that a crash or a power cut left in pieces."""
    repo = pathlib.Path(__salt__["sites.paths"](site)["repo"])
    for path in repo.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    _git(site, ["init", "--quiet", "--bare", str(repo)], task="git init")


@contextlib.contextmanager
def _credentials(site, repository):
    """
    The environment that lets git into a private repository: nothing of it shows in a process list.

    ``secrets:sites:<site>:deploy_key`` (with ``known_hosts``) for ssh, ``token`` for https.
    """
    secrets = ((__pillar__.get("secrets") or {}).get("sites") or {}).get(site) or {}
    if repository.startswith("https://") and secrets.get("token"):
        helper = (
            '!f() { test "$1" = get && echo username=x-access-token && '
            'echo "password=$SALTERN_GIT_TOKEN"; }; f'
        )
        host = re.match(r"https://(?:[^/@]*@)?([^/]+)", repository)[1]
        yield {
            "SALTERN_GIT_TOKEN": secrets["token"],
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": f"credential.https://{host}.helper",
            "GIT_CONFIG_VALUE_0": helper,
        }
        return
    if not secrets.get("deploy_key"):
        yield {}
        return
    if not secrets.get("known_hosts"):
        raise CommandExecutionError(
            f"secrets:sites:{site} has a deploy_key but no known_hosts: add the line of the "
            "repository's host (ssh-keyscan shows it; compare it with what the host publishes)."
        )
    folder = pathlib.Path(f"/run/saltern-key-{site}-{os.getpid()}")
    folder.mkdir(mode=0o700)
    try:
        for name in ("deploy_key", "known_hosts"):
            descriptor = os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(secrets[name].rstrip() + "\n")
            shutil.chown(f"{folder}/{name}", __salt__["sites.builder"](site))
        shutil.chown(folder, __salt__["sites.builder"](site))
        yield {
            "GIT_SSH_COMMAND": f"ssh -F /dev/null -i {folder}/deploy_key -o IdentitiesOnly=yes "
            f"-o UserKnownHostsFile={folder}/known_hosts -o StrictHostKeyChecking=yes "
            "-o BatchMode=yes -o ConnectTimeout=15"
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _resolve(site, rev):
    """The commit of a branch, a tag or a SHA, perhaps an abbreviated one."""
    candidates = [rev]
    if not _SHA.fullmatch(rev):
        candidates = [f"refs/heads/{rev}", f"refs/tags/{rev}"]
        if re.fullmatch(r"[0-9a-f]{7,39}", rev):
            candidates.append(rev)
    found = {}
    for candidate in candidates:
        commit = _commit(site, candidate)
        if commit:
            found.setdefault(commit[0], (candidate, commit))
    if not found:
        raise _unknown(site, rev)
    if len(found) > 1:
        raise CommandExecutionError(
            f"{rev!r} means different commits: {', '.join(name for name, _ in found.values())}. "
            f"Name one of them by its SHA: {', '.join(found)}."
        )
    return next(iter(found.values()))[1]


def _check_out(site, facts, sha, folder):
    """The files of a commit, with its submodules, and nothing of git's own."""
    paths = __salt__["sites.paths"](site)
    command = ["clone", "--quiet", "--shared", "--no-checkout", paths["repo"], folder]
    _git(site, command, cwd=paths["releases"])
    _git(site, ["checkout", "--quiet", "--detach", sha], cwd=folder)
    if pathlib.Path(folder, ".gitmodules").exists():
        # Relative addresses of submodules are meant from the real repository.
        _git(site, ["remote", "set-url", "origin", facts["repository"]], cwd=folder)
        command = ["submodule", "--quiet", "update", "--init", "--recursive"]
        with _credentials(site, facts["repository"]) as env:
            try:
                _git(site, [*command, "--depth=1"], cwd=folder, env=env)
            except CommandExecutionError:
                # Not every server gives out a commit that no branch or tag stands at: all of it.
                _git(site, ["submodule", "--quiet", "deinit", "--all", "--force"], cwd=folder)
                shutil.rmtree(f"{folder}/.git/modules", ignore_errors=True)
                _git(site, command, cwd=folder, env=env, task="Fetching the submodules")
        for inner in pathlib.Path(folder).rglob(".git"):
            if inner.is_file() and not inner.is_symlink():
                inner.unlink()
    shutil.rmtree(f"{folder}/.git")


# --- the virtualenv


def _folder(facts, root, sha):
    folder = os.path.normpath(os.path.join(root, facts["subdirectory"]))
    if not f"{folder}/".startswith(f"{root}/"):
        raise CommandExecutionError(
            f"sites.{facts['name']}.subdirectory leads out of the repository."
        )
    if not pathlib.Path(folder, "manage.py").exists():
        raise CommandExecutionError(
            f"The repository at {sha[:8]} has no manage.py in "
            f"{facts['subdirectory'] or 'its top folder'}: set sites.{facts['name']}.subdirectory."
        )
    return folder


def _virtualenv(site, facts, folder, sha, force):
    """The virtualenv of what the requirement files say, and whether it had to be made."""
    requirements = _requirements(facts, folder)
    digest = hashlib.sha256(os.path.realpath(facts["python"]).encode())
    for name, content in requirements.items():
        digest.update(f"\0{name}\0".encode() + content)
    digest.update(json.dumps(sorted(facts["extra_indexes"])).encode())
    if any(_LOCAL.search(content) for content in requirements.values()):
        digest.update(sha.encode())
    where = f"{__salt__['sites.paths'](site)['virtualenvs']}/{digest.hexdigest()[:16]}"
    if _complete(where) and not (force and not _in_use(site, where)):
        return where, False
    shutil.rmtree(where, ignore_errors=True)
    _install(site, facts, folder, where)
    _flush(where)
    __salt__["commands.run"](site, ["touch", f"{where}/.complete"], build=True)
    return where, True


# What is installed from the release's own folder belongs to this release alone.
_LOCAL = re.compile(rb"^\s*(-e\b|--editable\b|\.{0,2}/|\.\s*$|file:)|@\s*file:", re.MULTILINE)
_INCLUDED = re.compile(r"^\s*(?:-r|-c|--requirement|--constraint)[\s=]+(\S+)", re.MULTILINE)


def _requirements(facts, folder):
    """The contents of all requirement files, those that they include too."""
    found, left = {}, list(facts["requirements"])
    while left:
        name = os.path.normpath(left.pop(0))
        if name in found:
            continue
        path = pathlib.Path(folder, name).resolve()
        if not path.is_relative_to(pathlib.Path(folder).resolve()) or not path.is_file():
            raise CommandExecutionError(
                f"The release has no {name}: name its requirement files in "
                f"sites.{facts['name']}.requirements."
            )
        found[name] = path.read_bytes()
        included = _INCLUDED.findall(found[name].decode("utf-8", "replace"))
        left += [str(pathlib.PurePath(name).parent / other) for other in included]
    return found


def _install(site, facts, folder, where):
    uv = shutil.which("uv", path=_UV_PATH)
    python = f"{where}/bin/python"
    indexes = " ".join(facts["extra_indexes"])
    env = {"PIP_EXTRA_INDEX_URL": indexes, "UV_EXTRA_INDEX_URL": indexes} if indexes else {}
    env["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"

    def do(command, task):
        return __salt__["commands.run"](
            site, command, build=True, env=env, cwd=folder, timeout=1800, task=task
        )

    if uv:
        do([uv, "venv", "--quiet", "--python", facts["python"], where], "Making the virtualenv")
    else:
        do([facts["python"], "-m", "venv", where], "Making the virtualenv")
    for name in facts["requirements"]:
        source = _installable(do, uv, name, where, python)
        if uv:
            command = [uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", python]
        else:
            command = [python, "-m", "pip", "install", "--quiet"]
        do([*command, "-r", source], f"Installing {name}")
    do(["rm", "-f", f"{where}/.lock"], "Removing uv's lock")  # it is writable for everybody


def _installable(do, uv, name, where, python):
    """A requirement file that pip or uv installs from, made of what the site has."""
    kind = pathlib.PurePath(name).name
    if kind == "uv.lock":
        if not uv:
            raise CommandExecutionError("uv.lock needs uv on this host: it is not installed.")
        source = f"{where}/requirements.txt"
        command = [uv, "export", "--quiet", "--frozen", "--no-dev", "--no-emit-project"]
        command += ["--directory", str(pathlib.PurePath(name).parent), "-o", source]
        do(command, "Reading uv.lock")
        return source
    if kind == "pyproject.toml" and not uv:
        source = f"{where}/requirements.txt"
        do([python, "-c", _DEPENDENCIES, name, source], "Reading pyproject.toml")
        return source
    return name


_DEPENDENCIES = """
import sys
try:
    import tomllib
except ImportError:
    from pip._vendor import tomli as tomllib
with open(sys.argv[1], "rb") as file:
    project = tomllib.load(file).get("project", {})
with open(sys.argv[2], "w") as file:
    file.write("\\n".join(project.get("dependencies", [])) + "\\n")
"""


def _complete(virtualenv):
    return pathlib.Path(virtualenv, ".complete").exists()


def _in_use(site, virtualenv):
    return any(info(site, name)["virtualenv"] == virtualenv for name in list_(site))


# --- folders


def _notes(site):
    return f"{__salt__['sites.paths'](site)['root']}/deploy/releases"


def _entries(folder):
    with contextlib.suppress(FileNotFoundError):
        return sorted(path.name for path in pathlib.Path(folder).iterdir())
    return []


def _sweep(site):
    """Remove what interrupted builds left behind. The ship's lock is ours: nobody works on it."""
    releases = __salt__["sites.paths"](site)["releases"]
    for name in _entries(releases):
        if ".new-" in name:
            shutil.rmtree(f"{releases}/{name}", ignore_errors=True)


def _remove(site, name, root):
    """First the note, so that half a release never counts as one."""
    pathlib.Path(_notes(site), f"{name}.json").unlink(missing_ok=True)
    shutil.rmtree(root, ignore_errors=True)


def _prune_static(served, kept):
    """Remove served files that no kept release has. Compressed twins go with their file."""
    for folder, _, names in os.walk(served):
        for name in names:
            path = pathlib.Path(folder, name)
            plain = path.with_suffix("") if path.suffix in (".gz", ".br") else path
            if not any((static / plain.relative_to(served)).exists() for static in kept):
                path.unlink()


def _flush(*folders):
    """Write folders' file systems to the disk: a power cut doesn't empty what is complete."""
    subprocess.run(["sync", "--file-system", *folders], check=True)


__func_alias__ = {"list_": "list"}
