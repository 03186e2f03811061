"""
An open-loop HTTP client: requests leave when they are due, whether or not others were answered.

Each request has a connection of its own. Prints one JSON object a line: what was asked, when it
was due (seconds since the start), status, release, seconds until the whole answer was there, error.
Standard library only; runs as a client on the farm's network.

    python3 tests/bench/open_loop.py --address 198.18.0.11 --host newsroom.lab --rate 200
"""

import argparse
import asyncio
import json
import sys
import time

# What is asked for, and how often out of 100. Each slow one holds a worker for 5 s: at 200 requests
# a second one of the lab's four workers is always at one.
MIX = {
    "cached": 40,
    "uncached": 40.4,
    "post": 18,
    "upload": 1.5,
    "slow": 0.1,
}
# The site's check for forgery compares a cookie with a field of the form: any value will do.
TOKEN = "a" * 32
FORM = f"csrfmiddlewaretoken={TOKEN}".encode()
BOUNDARY = "part"
UPLOAD = "\r\n".join(
    (
        f"--{BOUNDARY}",
        'Content-Disposition: form-data; name="csrfmiddlewaretoken"',
        "",
        TOKEN,
        f"--{BOUNDARY}",
        'Content-Disposition: form-data; name="photo"; filename="photo.bin"',
        "Content-Type: application/octet-stream",
        "",
        "x" * 200_000,
        f"--{BOUNDARY}--",
        "",
    )
).encode()


def request_of(kind, number, host):
    """The bytes of a request, and the status that is the right answer."""
    if kind == "cached":
        return head("GET", "/", host), 200
    if kind == "uncached":
        return head("GET", f"/?flush-the-cache={number}", host), 200
    if kind == "slow":
        return head("GET", "/slow/?seconds=5", host), 200
    # A form that Django reads to its end, and that changes nothing: a stranger logs out.
    if kind == "upload":
        return head(
            "POST", "/logout/", host, UPLOAD, f"multipart/form-data; boundary={BOUNDARY}"
        ), 302
    return head("POST", "/logout/", host, FORM, "application/x-www-form-urlencoded"), 302


def head(method, path, host, body=b"", kind=None):
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close"]
    if method == "POST":
        lines += [f"Content-Length: {len(body)}", f"Content-Type: {kind}"]
        lines += [f"Cookie: csrftoken={TOKEN}"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def kinds():
    """The kinds of request in the order in which they leave: spread evenly, again and again."""
    owed = dict.fromkeys(MIX, 0.0)
    while True:
        for kind, share in MIX.items():
            owed[kind] += share
        kind = max(owed, key=owed.get)
        owed[kind] -= sum(MIX.values())
        yield kind


async def exchange(address, port, data):
    """Send a request on a connection of its own; all that comes back."""
    reader, writer = await asyncio.open_connection(address, port)
    try:
        writer.write(data)
        await writer.drain()
        return await reader.read()
    finally:
        writer.close()


async def ask(address, port, kind, number, host, timeout):
    """What became of one request: its status and release, or an error."""
    data, right = request_of(kind, number, host)
    try:
        answer = await asyncio.wait_for(exchange(address, port, data), timeout)
    except (OSError, asyncio.TimeoutError) as error:
        return {"error": f"{type(error).__name__}: {error}"}
    top, _, body = answer.partition(b"\r\n\r\n")
    lines = top.decode("latin-1").split("\r\n")
    try:
        status = int(lines[0].split()[1])
    except (IndexError, ValueError):
        return {"error": "no answer"}
    named = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
    length = named.get("content-length")
    found = {"status": status, "release": named.get("x-release")}
    if status != right:
        found["error"] = f"status {status}"
    elif length is not None and int(length) != len(body):
        found["error"] = f"{len(body)} of {length} bytes"
    return found


async def main(options):
    started = time.monotonic()
    order, running = kinds(), set()

    async def one(number, due, kind):
        found = await ask(
            options.address, options.port, kind, number, options.host, options.timeout
        )
        # From when it was due: a client that is late itself hides nothing.
        seconds = time.monotonic() - started - due
        found |= {"kind": kind, "due": round(due, 3), "seconds": round(seconds, 4)}
        print(json.dumps(found))

    number = 0
    while (due := number / options.rate) < options.seconds:
        await asyncio.sleep(max(0, due - (time.monotonic() - started)))
        task = asyncio.create_task(one(number, due, next(order)))
        running.add(task)
        task.add_done_callback(running.discard)
        number += 1
    await asyncio.gather(*running)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--address", required=True)
    parser.add_argument("--port", type=int, default=80)
    parser.add_argument("--host", required=True, help="the site's name")
    parser.add_argument("--rate", type=float, default=200, help="requests a second")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--timeout", type=float, default=30, help="seconds for one request")
    asyncio.run(main(parser.parse_args()))
    sys.stdout.flush()
