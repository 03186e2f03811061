#!/usr/bin/env python3
"""
Writes the tables of settings.md from the defaults files: every key of every service, of a site, of
an operator.

    python3 docs/generate.py            write them
    python3 docs/generate.py --check    only tell whether they are as they should be

Needs Salt in its Python, as the reader of defaults files is a module of the minion.
"""

import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "settings.md"
START = "<!-- What follows is written by docs/generate.py. -->\n"

sys.path.insert(0, str(ROOT / "_modules"))
import schema  # noqa: E402 - found through the line above


def main(arguments):
    """Write the page, or with ``--check`` compare it. Returns the exit code."""
    if arguments not in ([], ["--check"]):
        print(__doc__.strip(), file=sys.stderr)
        return 2
    written = PAGE.read_text(encoding="utf-8")
    wanted = page(written)
    if written == wanted:
        return 0
    if arguments:
        print(
            "docs/settings.md doesn't say what the defaults files do: run docs/generate.py",
            file=sys.stderr,
        )
        return 1
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


def page(written):
    """The page as it should be: what is written by hand, then the tables."""
    prose, mark, _ = written.partition(START)
    if not mark:
        raise SystemExit(f"docs/settings.md has lost its line {START.strip()!r}")
    sections = [
        section(f"`{path.parent.name}`", f"salt/{path.parent.name}/defaults.yaml")
        for path in sorted((ROOT / "salt").glob("*/defaults.yaml"))
    ]
    sections.append(section("A site", "salt/django/site.yaml"))
    sections.append(section("An operator", "salt/accounts/operator.yaml"))
    return prose + START + "".join(sections)


def section(title, source):
    """A heading and the table of one file."""
    text = (ROOT / source).read_text(encoding="utf-8")
    lines = [f"\n### {title}\n", f"\n{introduction(text)} From `{source}`.\n"]
    lines += ["\n| key | default | allowed | what it is |\n", "|---|---|---|---|\n"]
    for key in schema.read(text, source).values():
        lines.append(f"| `{key.name}` | {shown(key)} | {cell(key.bracket)} | {cell(key.text)} |\n")
    return "".join(lines)


def introduction(text):
    """What the comment at the top of a file says."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return cell(" ".join(lines))


def shown(key):
    """A key's default, as a cell of a table."""
    if key.default is None:
        return "required" if key.required else "—"
    if isinstance(key.default, bool):
        return f"`{str(key.default).lower()}`"
    if key.default in ("", [], {}):
        return "empty"
    if isinstance(key.default, list):
        return cell(", ".join(f"`{element}`" for element in key.default))
    if isinstance(key.default, dict):
        return cell(", ".join(f"`{name}: {value}`" for name, value in key.default.items()))
    return cell(f"`{key.default}`")


def cell(text):
    """Text that can't break out of its cell."""
    return str(text).replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
