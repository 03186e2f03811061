"""
A host in a box: its own mounts and processes, the machine's programs, nothing of the machine
changed.

In the box /etc and /opt are overlays, /srv and /run folders of the test, so that states and modules
work with the paths and users they have on a real host. What was started in the box ends with it.
"""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import time

REPO = pathlib.Path(__file__).parents[2]

# Its first argument: the folder of a box that this one begins as a copy of, or nothing.
_SETUP = """
set -e
mount --make-rprivate /
image=$1
for folder in etc opt; do
    mkdir -p up/$folder work/$folder
    lower=${image:+$image/up/$folder:}/$folder
    mount -t overlay overlay -o lowerdir=$lower,upperdir=up/$folder,workdir=work/$folder /$folder
done
mkdir -p srv run work/srv
if [ "$image" ]; then
    mount -t overlay overlay -o lowerdir=$image/srv,upperdir=srv,workdir=work/srv /srv
else
    mount --bind srv /srv
fi
mount --bind run /run
echo ready
# Bash, as the box's first process, buries what others leave behind.
while true; do sleep 3600 & wait $!; done
"""


class Box:
    """
    One such host. ``call`` runs an execution module's function in it with the real salt-call.

    folder
        Where its files lie.
    pillar
        What it is told, without a master.
    minion
        Its id.
    image
        The folder of a closed box: this one begins with what is below /etc, /opt and /srv there.
    options
        What differs in the minion's configuration.
    """

    def __init__(self, folder, pillar, minion="app1", image="", **options):
        self.folder = pathlib.Path(folder)
        self.minion = minion
        self._write_configuration(pillar, options)
        apart = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self._process = subprocess.Popen(
            [*apart, "bash", "-c", _SETUP, "box", str(image)],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout.readline() == "ready\n"
        children = pathlib.Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        self._init = children.read_text(encoding="utf-8").split()[0]

    def close(self):
        self._process.kill()
        self._process.wait()

    def write_pillar(self, pillar):
        (self.folder / "pillar" / "host.sls").write_text(json.dumps(pillar), encoding="utf-8")

    def _write_configuration(self, pillar, options):
        (self.folder / "pillar").mkdir(parents=True)
        (self.folder / "pillar" / "top.sls").write_text("base: {'*': [host]}", encoding="utf-8")
        self.write_pillar(pillar)
        minion = {
            "id": self.minion,
            "file_client": "local",
            "root_dir": str(self.folder / "salt"),
            "file_roots": {"base": [str(REPO / "salt")]},
            "pillar_roots": {"base": [str(self.folder / "pillar")]},
            "module_dirs": [str(REPO)],
            "log_level_logfile": "warning",
            "enable_gpu_grains": False,
            **options,
        }
        (self.folder / "config").mkdir()
        (self.folder / "config" / "minion").write_text(json.dumps(minion), encoding="utf-8")

    def command(self, *command):
        """The command line that runs a command in the box."""
        return ["nsenter", f"--target={self._init}", "--mount", "--pid", *map(str, command)]

    def run(self, *command, check=True, **options):
        """Run a command in the box; its CompletedProcess."""
        done = subprocess.run(
            self.command(*command), capture_output=True, text=True, check=False, **options
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def start(self, *command, log):
        """Start a daemon in the box; its Popen."""
        with open(self.folder / log, "ab") as file:
            return subprocess.Popen(self.command(*command), stdout=file, stderr=file)

    def salt(self, function, *arguments, **named):
        """The command line of a salt-call."""
        words = [json.dumps(value) if not isinstance(value, str) else value for value in arguments]
        words += [f"{name}={json.dumps(value)}" for name, value in named.items()]
        return [
            str(pathlib.Path(sys.executable).parent / "salt-call"),
            f"--config-dir={self.folder}/config",
            "--local",
            "--out=json",
            "--log-level=warning",
            "--retcode-passthrough",
            function,
            *words,
        ]

    def call(self, function, *arguments, fails=False, **named):
        """
        What a function returned. ``fails`` says that its exit code is to be other than 0.
        """
        done = self.run(*self.salt(function, *arguments, **named), check=False)
        told = f"exit {done.returncode}\n{done.stdout}{done.stderr}"
        assert (done.returncode != 0) == fails, told
        try:
            return json.loads(done.stdout)["local"]
        except ValueError:
            assert fails, done.stdout + done.stderr
            return done.stderr

    def background(self, function, *arguments, **named):
        """A salt-call that runs beside the test; its Popen."""
        return subprocess.Popen(
            self.command(*self.salt(function, *arguments, **named)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def apply(self, *states):
        """Apply states; all must succeed."""
        for state in states:
            failed = [s for s in self.call("state.apply", state).values() if not s["result"]]
            assert not failed, failed

    def render(self, source, target, **context):
        """Write a template of the state tree to where its state would."""
        rendered = self.call("cp.get_template", f"salt://{source}", target, context=context)
        assert rendered == target, rendered


def wait_for(condition, seconds=10.0, what="it"):
    """Wait until a condition holds; what it returned."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            found = condition()
            if found:
                return found
        time.sleep(0.05)
    raise AssertionError(f"{what} didn't happen within {seconds} s")


def machine_has(*programs):
    """The programs of a list that this machine lacks."""
    folders = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"]
    return [p for p in programs if not any(os.access(f"{f}/{p}", os.X_OK) for f in folders)]
