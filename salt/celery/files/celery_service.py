"""
Managed by Saltern: salt/celery/files/celery_service.py. Runs a release's background work.

    celery_service.py NOTE ENV_FILE worker ARGUMENTS…   a worker that tells systemd when it is ready
    celery_service.py NOTE ENV_FILE beat ARGUMENTS…     beat, on one host of the farm at a time
    celery_service.py NOTE ENV_FILE run COMMAND…        any program with the site's environment
    celery_service.py NOTE ENV_FILE inspect APP QUEUE…  queues and workers, as JSON
    celery_service.py NOTE ENV_FILE scale APP NODE N    N processes in a worker that runs

NOTE says where the release's code and virtualenv are, ENV_FILE holds the site's environment. The
arguments of worker and beat are those of Celery's own commands, the application first.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time

# Seconds: beat's lock is tried for and looked after this often, and lost after this long.
LOOK, LEASE = 3, 15
LOCK = "saltern.beat"
# Seconds until a worker has the processes that it was told to have: it looks every five.
SCALE = 15


def main(note, env_file, role, *arguments):
    with open(note, encoding="utf-8") as file:
        release = json.load(file)
    if os.path.realpath(sys.prefix) != os.path.realpath(release["virtualenv"]):
        python = f"{release['virtualenv']}/bin/python"
        os.execv(python, [python, *sys.argv])  # noqa: S606 - a shell isn't wanted
    read_environment(env_file)
    os.environ["STATIC_ROOT"] = release["static"]
    os.environ["RELEASE"] = release["release"]
    os.environ["VIRTUAL_ENV"] = release["virtualenv"]
    os.chdir(release["code"])
    sys.path[0] = release["code"]
    roles = {"worker": worker, "beat": beat, "run": run, "inspect": inspect, "scale": scale}
    roles[role](*arguments)


def read_environment(path):
    """Each line of the site's file is NAME=value, taken as it stands."""
    with open(path, encoding="utf-8") as file:
        for line in file:
            name, equals, value = line.rstrip("\n").partition("=")
            if equals:
                os.environ[name] = value


def tell_systemd(message):
    """Send a message such as READY=1 to systemd, if it listens."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(message.encode(), address)


def celery(*arguments):
    from celery.__main__ import main as celery_main

    sys.argv = ["celery", *arguments]
    sys.exit(celery_main())


def application(name):
    from celery.bin.celery import find_app

    return find_app(name)


def worker(app, *arguments):
    from celery import signals

    def ready(**_):
        tell_systemd("READY=1\nSTATUS=Takes tasks.")

    def stopping(**_):
        tell_systemd("STOPPING=1\nSTATUS=Finishes its tasks, takes no new ones.")

    signals.worker_ready.connect(ready, weak=False)
    signals.worker_shutting_down.connect(stopping, weak=False)
    celery("-A", app, "worker", *arguments)


def beat(app, *arguments):
    """
    Beat runs on every worker host, and waits there until it is the only one.

    The lock lies in the broker, where beat's tasks go: a beat that can't reach the one can't
    reach the other. Whose host dies loses it within seconds, and the next one goes on.
    """
    tell_systemd("READY=1\nSTATUS=Stands by: another host's beat runs.")
    hold = lock_in_redis if is_redis(app) else lock_in_rabbitmq
    hold(application(app))
    tell_systemd("STATUS=Runs: the only beat of the farm.")
    print("beat: this host's turn", file=sys.stderr, flush=True)
    celery("-A", app, "beat", *arguments)


def is_redis(app):
    return application(app).connection_for_write().transport_cls.startswith("redis")


def lock_in_rabbitmq(app):
    """Hold an exclusive queue: the broker lets one connection have it, while it lives."""
    from amqp.exceptions import ResourceLocked

    connection = app.connection_for_write(heartbeat=LEASE)
    connection.ensure_connection()
    # One for all attempts: after a refusal the library opens it again by itself, and the broker
    # would keep another one in its RAM for each.
    channel = connection.channel()
    while True:
        try:
            channel.queue_declare(LOCK, exclusive=True, durable=False)
            break
        except ResourceLocked:
            wait(connection)
    guard(lambda: wait(connection))


def wait(connection):
    """Let LOOK seconds pass on a connection, with its heartbeats."""
    with contextlib.suppress(TimeoutError):
        connection.drain_events(timeout=LOOK)
    connection.heartbeat_check()


def lock_in_redis(app):
    """Hold a key that ends by itself, and put its end off while beat lives."""
    from redis import Redis

    server = Redis.from_url(app.conf.broker_read_url or app.conf.broker_url)
    # As the site's queues: several sites share a Redis.
    prefix = app.conf.broker_transport_options.get("global_keyprefix", "")
    lock = server.lock(f"{prefix}{LOCK}", timeout=LEASE, sleep=LOOK, thread_local=False)
    lock.acquire()

    def look_after():
        time.sleep(LOOK)
        lock.extend(LEASE, replace_ttl=True)

    guard(look_after)


def guard(look_after):
    """Look after the lock beside beat; without it, end at once: systemd starts over."""

    def keep():
        try:
            while True:
                look_after()
        except Exception as error:  # noqa: BLE001 - whatever it is, the lock isn't sure any more
            print(f"beat: lost its lock: {error!r}", file=sys.stderr, flush=True)
            os._exit(1)

    threading.Thread(target=keep, daemon=True).start()


def run(program, *arguments):
    """Programs of the virtualenv and of the release are found by their names."""
    programs = f"{os.environ['VIRTUAL_ENV']}/bin"
    os.environ["PATH"] = f"{programs}:{os.environ.get('PATH', '/usr/bin:/bin')}"
    if program.endswith(".py"):
        program, arguments = sys.executable, (program, *arguments)
    os.execvp(program, [program, *arguments])  # noqa: S606 - a shell isn't wanted


def inspect(app, *queues):
    app = application(app)
    found = {"queues": {}, "workers": {}}
    with app.connection_for_read() as connection:
        for name in queues:
            found["queues"][name] = waiting(connection, name)
    replies = app.control.inspect(timeout=1)
    active, reserved = replies.active() or {}, replies.reserved() or {}
    stats = replies.stats() or {}
    for node in sorted(stats):
        found["workers"][node] = {
            "processes": len(stats[node]["pool"]["processes"]),
            "running": [task["name"] for task in active.get(node, [])],
            "fetched": len(reserved.get(node, [])),
            "done": sum(stats[node]["total"].values()),
        }
    answer(found)


def waiting(connection, queue):
    """How many tasks wait in a queue; none where nobody made it yet."""
    channel = connection.channel()
    try:
        return channel.queue_declare(queue, passive=True).message_count
    except connection.channel_errors:
        return 0


def scale(app, node, processes):
    """Change a worker's processes, and wait until it has so many: it makes them in its own time."""
    app = application(app)
    old, wanted = processes_of(app, node), int(processes)
    if wanted > old and app.conf.task_default_queue_type == "quorum":
        sys.exit(
            "A worker of quorum queues can't be told to hold more tasks while it runs: "
            "change the site's `queues` in sites.yaml."
        )
    if wanted != old:
        change = app.control.pool_grow if wanted > old else app.control.pool_shrink
        told = change(abs(wanted - old), destination=[node], reply=True, timeout=5)
        problems = [reply[node]["error"] for reply in told if "error" in reply.get(node, {})]
        if problems:
            sys.exit(f"{node}: {problems[0]}")
    deadline = time.monotonic() + SCALE
    while (now := processes_of(app, node)) != wanted:
        if time.monotonic() > deadline:
            sys.exit(f"{node} was told to have {wanted} processes and still has {now}")
        time.sleep(0.5)
    answer({"old": old, "new": now})


def processes_of(app, node):
    stats = app.control.inspect([node], timeout=2).stats() or {}
    if node not in stats:
        sys.exit(f"{node} doesn't answer")
    return len(stats[node]["pool"]["processes"])


def answer(found):
    """Print a result behind a mark, as the site's code may print and log too."""
    print(f"\nsaltern:{json.dumps(found)}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
