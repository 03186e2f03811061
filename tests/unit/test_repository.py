"""The tree keeps its own rules: linters are content, each thing stands where one looks for it."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
TOOLS = pathlib.Path(sys.executable).parent  # the virtualenv that the tests run in


def _tracked(*patterns):
    """The files of the tree, without what .gitignore names."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    done = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in done.stdout.splitlines() if (ROOT / name).is_file()]


def _texts():
    for path in _tracked():
        try:
            yield path, path.read_text()
        except UnicodeDecodeError:
            continue  # a picture


SERVICES = sorted(path.parent.name for path in _tracked("salt/*/init.sls"))
PYTHON = _tracked("*.py") + [ROOT / "lab"]


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "--no-cache", "."],
        ["ruff", "format", "--no-cache", "--check", "."],
        ["yamllint", "--strict", "."],
        ["salt-lint", *map(str, _tracked("*.sls"))],
    ],
    ids=lambda command: " ".join(command[:2])[:20],
)
def test_linters_are_content(command):
    done = subprocess.run(
        [TOOLS / command[0], *command[1:]], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_is_a_folder_of_its_own_with_settings_and_a_page(service):
    assert (ROOT / "salt" / service / "defaults.yaml").exists()
    assert (ROOT / "docs" / f"{service}.md").exists()


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_says_who_may_reach_it(service):
    """Where it needs nothing from outside, that is what its firewall.yaml says."""
    declared = yaml.safe_load((ROOT / "salt" / service / "firewall.yaml").read_text())
    assert isinstance(declared, dict)


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_fetches_files_of_its_own_or_of_os(service):
    text = "".join(path.read_text() for path in _tracked(f"salt/{service}/*"))
    fetched = set(re.findall(r"salt://(\w+)/", text))
    assert fetched <= {service, "os"}


def test_every_service_that_a_role_brings_exists():
    tree = ast.parse((ROOT / "_modules/inventory.py").read_text())
    (roles,) = [node.value for node in tree.body if _assigns(node, "ROLES")]
    brought = {service for services in ast.literal_eval(roles).values() for service in services}
    assert brought <= set(SERVICES)


def _assigns(node, name):
    return isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == name


@pytest.mark.parametrize(
    "kind", ["_modules", "_states", "_grains", "_runners", "_renderers", "_wrapper"]
)
def test_salt_finds_the_modules_through_links(kind):
    """Salt looks for them below file_roots, people at the top."""
    link = ROOT / "salt" / kind
    assert link.is_symlink()
    assert link.readlink() == pathlib.Path("..", kind)
    if (ROOT / kind).is_dir():
        assert link.resolve() == ROOT / kind


def test_salt_ssh_takes_every_services_files_along():
    master = yaml.safe_load((ROOT / "etc/salt/master").read_text())
    assert master["extra_filerefs"] == ",".join(f"salt://{service}" for service in SERVICES)


def test_what_salt_ssh_runs_on_the_master_is_a_module():
    for link in (ROOT / "_wrapper").iterdir():
        assert link.readlink() == pathlib.Path("../_modules", link.name)
        assert link.exists()


def test_python_files_say_what_they_are_for():
    silent = [
        path
        for path in PYTHON
        if path.read_text().strip()
        and "migrations" not in path.parts
        and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert not silent, silent


def test_public_functions_of_modules_are_described_with_an_example():
    silent = []
    for path in _tracked("_modules/*.py", "_runners/*.py"):
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
                continue
            if "CLI Example:" not in (ast.get_docstring(node) or ""):
                silent.append(f"{path.name}: {node.name}")
    assert not silent, "\n".join(silent)


def test_sls_and_settings_say_what_they_are_for():
    files = _tracked("*.sls", "*.yaml", "*.jinja")
    silent = [path for path in files if not path.read_text().lstrip().startswith(("#", "{#"))]
    assert not silent, silent


def test_nothing_names_a_registry_or_a_folder_of_one_machine():
    registries = r"https?://[a-z0-9.-]*(?:pypi|pythonhosted|debian|ubuntu|npmjs)\.(?:org|net|com)"
    here = f"{re.escape(str(ROOT))}|{re.escape(sys.prefix)}"
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path, text in _texts()
        if path != pathlib.Path(__file__)
        for match in re.finditer(f"{registries}|{here}", text)
    ]
    assert not found, "\n".join(found)


def test_no_check_is_switched_off_without_a_reason():
    switched_off = r"#\s*noqa(?!: [A-Z]+[0-9]+(?:, [A-Z]+[0-9]+)* - \w)|yamllint disable(?!.* - )"
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path, text in _texts()
        if path != pathlib.Path(__file__)
        for line in text.splitlines()
        if re.search(switched_off, line)
    ]
    assert not found, "\n".join(found)


def test_pages_of_the_documentation_lead_somewhere():
    broken = []
    for page in _tracked("*.md"):
        for target in re.findall(r"\]\(([\w./:-]+)(?:#[\w-]*)?\)", page.read_text()):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert not broken, "\n".join(broken)


def test_the_lock_pins_what_the_project_asks_for():
    asked = re.findall(r'^    "([A-Za-z0-9_-]+)', (ROOT / "pyproject.toml").read_text(), re.M)
    pinned = {
        line.partition("=")[0] for line in (ROOT / "requirements.lock").read_text().splitlines()
    }
    for name in ("salt", "pytest", "ruff", "hypothesis"):
        assert name in asked
        assert name in pinned


def test_the_lab_is_an_environment_that_the_pillar_knows():
    known = (ROOT / "pillar/environments/map.jinja").read_text()
    for folder in (ROOT / "pillar/environments").iterdir():
        if folder.is_dir():
            assert f"'{folder.name}'" in known
            assert "hosts" in yaml.safe_load((folder / "hosts.yaml").read_text())
