"""Running the site as a real server does: a new process and nothing but its environment."""

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


def manage(*arguments, without=(), **more):
    """Run manage.py with nothing but this environment. Returns the finished process."""
    environment = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"} | NEEDED | more
    for name in without:
        del environment[name]
    return subprocess.run(  # noqa: S603 - ours
        [sys.executable, "manage.py", *arguments],
        cwd=settings.BASE_DIR,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def run(code, **environment):
    """Run Python code with the site set up. Returns the finished process."""
    return manage("shell", "--no-imports", "-c", code, **environment)


def shown(expression, **environment):
    """What an expression of `settings` prints under an environment."""
    code = f"from django.conf import settings; print(repr(({expression})))"
    done = run(code, **environment)
    if done.returncode:
        raise AssertionError(done.stderr)
    return done.stdout.strip()
