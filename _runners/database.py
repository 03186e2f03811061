"""
Move the writes from one database host to another, with one command.
"""

import sys
import time

import salt.client
from salt.exceptions import CommandExecutionError


def promote(host, fenced=False):
    """
    Let another database host take the writes.

    The host that takes them now is stopped first and can't start again until it is a replica. What
    it had acknowledged is applied by the new one before it is promoted: nothing is lost. If it is
    dead, say so with ``fenced=True``: what it had acknowledged and not yet sent is lost, unless
    ``postgres.synchronous`` is on.

    host
        Minion id of the replica that takes over.
    fenced
        The old primary is powered off or cut from the network for good: it takes no writes though
        it doesn't answer.

    Returns the seconds without writes, and what is left for you to do. Returns ``error``, with
    nothing promoted and exit code 1, if the old primary may still take writes, if the host is no
    replica, or if another replica has more.

    CLI Example:

    .. code-block:: bash

        salt-run database.promote db2
        salt-run database.promote db2 fenced=True
    """
    return _reported(_promote, host, fenced)


def rejoin(host):
    """
    Make a host whose writes another one took over a replica of that one. What only this host has
    is thrown away.

    host
        Its minion id.

    Returns what was done; or ``error``, with exit code 1, if its minion doesn't answer, no other
    host takes writes, or the way back needs a fresh copy (the error says how).

    CLI Example:

    .. code-block:: bash

        salt-run database.rejoin db1
    """
    return _reported(_rejoin, host)


def _reported(act, *arguments):
    """What is done, or what is wrong as a sentence; ``retcode`` becomes the command's exit code."""
    try:
        return act(*arguments)
    except CommandExecutionError as error:
        return {"error": str(error), "retcode": 1}


def _promote(host, fenced):
    farm = _Farm()
    farm.tell(f"asking the database hosts; {host} is to take the writes")
    seen = farm.call(host, "database.survey", timeout=15)
    target, peers = seen["status"], seen["peers"]
    if target["state"] != "replica":
        raise CommandExecutionError(
            f"{host} is no running replica (its server is {target['state']})."
        )
    # One that is said to be off isn't waited for; a slow one that is on must not be taken for dead.
    answering = farm.alive([peer["id"] for peer in peers], patience=2 if fenced else 10)
    old = _old_primary(farm, peers, answering, fenced)
    _refuse_behind(farm, host, target, peers, answering)

    began = time.monotonic()
    end = None
    if old in answering:
        farm.tell(f"stopping the server on {old}; clients wait or try again")
        end = farm.call(old, "database.fence", host)["lsn"]
    farm.tell(f"promoting {host}")
    done = farm.call(host, "database.promote", end)
    without = round(time.monotonic() - began, 1)
    farm.tell(f"{host} takes the writes, {without} s after they stopped")
    return {
        "primary": host,
        "timeline": done["timeline"],
        "seconds_without_writes": without,
        "seconds": round(farm.elapsed(), 1),
        "do_now": f"commit `postgres: {{primary: {host}}}` in the environment's overrides.yaml: "
        "until then state.apply refuses to touch the database hosts",
        "do_then": f"salt-run database.rejoin {old}" if old else "put a replica beside it",
    }


def _rejoin(host):
    farm = _Farm()
    if not farm.alive([host]):
        raise CommandExecutionError(f"The minion of {host} doesn't answer.")
    source = farm.call(host, "database.source")["id"]
    # pg_rewind goes by the timeline in the source's control file, which a promotion changes only
    # with the first checkpoint after it.
    farm.call(source, "database.execute", "CHECKPOINT", timeout=600)
    farm.tell(f"making {host} a replica")
    done = farm.call(host, "database.rejoin", timeout=3600)
    # Commits that a promotion let go without a replica wait for this one again.
    farm.call(source, "database.wait_for_replicas")
    return {**done, "seconds": round(farm.elapsed(), 1)}


def _old_primary(farm, peers, answering, fenced):
    """The host that takes the writes or did last, or None. Refuses where one still might."""
    writers = [p["id"] for p in peers if p["answers"] and not p["in_recovery"]]
    if len(writers) > 1:
        raise CommandExecutionError(
            f"{' and '.join(writers)} both take writes. Fence the wrong one first: "
            f"salt {writers[0]} database.fence {writers[1]}"
        )
    silent = [p["id"] for p in peers if not p["answers"]]
    gone = [one for one in writers + silent if one not in answering]
    if gone and not fenced:
        raise CommandExecutionError(
            f"{', '.join(gone)} may still take writes, and its minion doesn't answer. Power it "
            f"off or cut it from the network, then say so: fenced=True. Nothing was promoted."
        )
    if writers:
        return writers[0]
    stopped = [one for one in silent if one in answering]
    stopped = [one for one in stopped if farm.call(one, "database.status").get("was") == "primary"]
    return next(iter(stopped + gone), None)


def _refuse_behind(farm, host, target, peers, answering):
    """Refuse to promote a replica while another one has received more."""
    for peer in peers:
        if not (peer["answers"] and peer["in_recovery"] and peer["id"] in answering):
            continue
        other = farm.call(peer["id"], "database.status")
        if _position(other) > _position(target):
            raise CommandExecutionError(
                f"{peer['id']} has more than {host}: promote that one. Nothing was promoted."
            )


def _position(status):
    """A place in the log as a number."""
    high, low = status["received"].split("/")
    return int(high, 16) << 32 | int(low, 16)


class _Farm:
    """The minions, asked one by one, with a line for each step."""

    def __init__(self):
        self._client = salt.client.LocalClient(mopts=__opts__)
        self._began = time.monotonic()

    def elapsed(self):
        return time.monotonic() - self._began

    def tell(self, text):
        print(f"[{self.elapsed():6.1f} s] {text}", file=sys.stderr, flush=True)

    def alive(self, hosts, patience=10):
        """Those of the hosts whose minion answers within so many seconds."""
        if not hosts:
            return []
        said = self._client.cmd(
            hosts, "test.ping", tgt_type="list", timeout=patience, gather_job_timeout=2
        )
        return [host for host in hosts if said.get(host) is True]

    def call(self, host, function, *arguments, timeout=90):
        """What a function on a host returns; an error of it is an error here."""
        said = self._client.cmd(
            [host],
            function,
            [argument for argument in arguments if argument is not None],
            tgt_type="list",
            timeout=timeout,
            full_return=True,
        )
        if host not in said or not isinstance(said[host], dict):
            raise CommandExecutionError(f"The minion of {host} doesn't answer to {function}.")
        if said[host].get("retcode"):
            raise CommandExecutionError(f"{host}: {said[host]['ret']}")
        return said[host]["ret"]
