"""Running the site as a real server does: a new process and nothing but its environment."""

import ast
import os
import subprocess
import sys

from django.conf import settings

NEEDED = {
    "DJANGO_SETTINGS_MODULE": "newsroom.settings.deploy",
    "SECRET_KEY": "$begins-with-a-dollar-9f0c6b1f6e4a0e8a55c1b2d9e34f708b6a",
    "ALLOWED_HOSTS": "newsroom.lab,lb1",
    "DATABASE_URL": "postgres://newsroom:p%40ss%24word@db1:5432/newsroom",
    "STATIC_ROOT": "/nowhere/static",
    "MEDIA_ROOT": "/nowhere/media",
}


def manage(*arguments, **more):
    """Run manage.py with nothing but this environment. Returns the finished process."""
    environment = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=settings.BASE_DIR,
        env=environment | NEEDED | more,
        capture_output=True,
        text=True,
        timeout=60,
    )


def run(code, **environment):
    """Run Python code with the site set up. Returns the finished process."""
    return manage("shell", "--no-imports", "-c", code, **environment)


def shown(expression, **environment):
    """The value of an expression of `settings` under an environment."""
    code = f"from django.conf import settings; print(repr(({expression})))"
    done = run(code, **environment)
    if done.returncode:
        raise AssertionError(done.stderr)
    return ast.literal_eval(done.stdout)
