"""The example site's own tests pass: on SQLite, as anybody who copies it runs them."""

import subprocess
import sys
from pathlib import Path

SITE = Path(__file__).parents[2] / "examples/newsroom"


def manage(*arguments):
    """Run the site's manage.py without a variable of ours. Returns the finished process."""
    return subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=SITE,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_site_passes_its_own_tests():
    done = manage("test")
    assert done.returncode == 0, done.stderr
    assert "\nOK" in done.stderr
    assert "skipped" not in done.stderr, "Install memcached and redis-server."


def test_migrations_say_all_that_the_models_say():
    done = manage("makemigrations", "--check", "--dry-run")
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_requirement_is_pinned():
    lines = (SITE / "requirements.txt").read_text().splitlines()
    assert lines
    assert [line for line in lines if "==" not in line] == []
