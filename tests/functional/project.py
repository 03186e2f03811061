"""The tiny Django project that the ship tests ship, and the git repository that it comes from."""

import pathlib
import subprocess
import textwrap

FILES = {
    "manage.py": """
        import sys
        from django.core.management import execute_from_command_line
        execute_from_command_line(sys.argv)
    """,
    "requirements.txt": "django==5.2.*\n",
    "tiny/__init__.py": "",
    "tiny/settings.py": """
        import os
        DEBUG = False
        SECRET_KEY = os.environ["SECRET_KEY"]
        ALLOWED_HOSTS = os.environ["ALLOWED_HOSTS"].split(",")
        ROOT_URLCONF = "tiny.urls"
        INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.staticfiles", "things"]
        def database(url):
            if url.startswith("/"):
                return {"ENGINE": "django.db.backends.sqlite3", "NAME": url}
            from urllib.parse import urlsplit
            parts = urlsplit(url)
            return {"ENGINE": "django.db.backends.postgresql", "NAME": parts.path[1:],
                    "USER": parts.username, "PASSWORD": parts.password,
                    "HOST": parts.hostname, "PORT": parts.port}
        DATABASES = {"default": database(os.environ["DATABASE_URL"])}
        STATIC_URL, STATIC_ROOT = "/static/", os.environ["STATIC_ROOT"]
        STORAGES = {"staticfiles": {
            "BACKEND": "django.contrib.staticfiles.storage.ManifestStaticFilesStorage"}}
        DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
    """,
    "tiny/urls.py": """
        import os, time
        from django.http import HttpResponse
        from django.templatetags.static import static
        from django.urls import path
        def health(request):
            return HttpResponse("well")
        def page(request):
            return HttpResponse(f"VERSION {static('site.css')}")
        def slow(request):
            time.sleep(float(request.GET["seconds"]))
            return HttpResponse(os.environ["RELEASE"])
        urlpatterns = [path("health/", health), path("slow/", slow), path("", page)]
    """,
    "tiny/wsgi.py": """
        from django.core.wsgi import get_wsgi_application
        application = get_wsgi_application()
    """,
    "things/__init__.py": "",
    "things/static/site.css": "/* VERSION */\n" + "body { color: black; }\n" * 60,
    "things/models.py": """
        from django.db import models
        class Thing(models.Model):
            name = models.CharField(max_length=50)
    """,
    "things/migrations/__init__.py": "",
    "things/migrations/0001_initial.py": """
        from django.db import migrations, models
        class Migration(migrations.Migration):
            initial = True
            operations = [migrations.CreateModel("Thing", [
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("name", models.CharField(max_length=50)),
            ])]
    """,
}


class Project:
    """A repository with one commit per version."""

    def __init__(self, folder, **files):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True)
        self.files = {**FILES, **files}
        self.git("init", "--quiet", "--initial-branch=main")
        self.commit("one")

    def git(self, *command):
        return subprocess.run(
            ["git", "-c", "user.name=Ada", "-c", "user.email=ada@example.com", *command],
            cwd=self.folder,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()

    def commit(self, version, files=None):
        """Commit changed files, and the version's name wherever VERSION stands; its SHA."""
        for name, text in {**self.files, **(files or {})}.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            text = textwrap.dedent(text).lstrip("\n").replace("VERSION", version)
            path.write_text(text, encoding="utf-8")
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", f"--message=Version {version}")
        return self.git("rev-parse", "HEAD")

    def forget(self, name):
        """Leave a file out of the commits that follow, if it is there."""
        (self.folder / name).unlink(missing_ok=True)
