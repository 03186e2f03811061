#!/usr/bin/env python3
"""
Ask for a URL at a steady rate, whatever the answers do (open loop), and say what became of it.

    python3 tests/bench/steady.py http://198.18.0.11/ --host newsroom.lab --rate 500 --seconds 10

Requests go over kept connections; one that finds its connection closed by the server before any
byte of an answer is sent again on a new one, as browsers do. ``--connections new`` opens one for
each request instead, and what becomes of that one counts. An ``https`` URL wants ``--authority``:
a server whose certificate isn't signed by it, or isn't for the host, has failed.

SIGTERM ends it early: what was sent is still waited for. Prints one line of JSON: ``sent``,
``ok``, ``failed``, ``errors`` (the first ten, by kind), ``p50_ms``, ``p99_ms``, ``max_ms``.
``{n}`` in the URL becomes a number, another for each request.
"""

import argparse
import asyncio
import collections
import json
import signal
import ssl
import time
import urllib.parse


class Client:
    """Requests to one server over a pool of kept connections."""

    def __init__(self, options):
        self.parts = urllib.parse.urlsplit(options.url)
        self.options = options
        self.host = options.host or self.parts.hostname
        self.tls = {}
        if self.parts.scheme == "https":
            trusted = ssl.create_default_context(cafile=options.authority)
            self.tls = {"ssl": trusted, "server_hostname": self.host}
        self.idle, self.seconds, self.errors = [], [], collections.Counter()
        self.sent = 0

    async def ask(self, number):
        began = time.monotonic()
        self.sent += 1
        try:
            status = await asyncio.wait_for(self._ask(number), self.options.timeout)
            if status != self.options.status:
                self.errors[f"status {status}"] += 1
        except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError, ValueError) as error:
            self.errors[f"{type(error).__name__} {error}".strip()] += 1
        self.seconds.append(time.monotonic() - began)

    async def _ask(self, number):
        path = (self.parts.path or "/").replace("{n}", str(number))
        path += f"?{self.parts.query}".replace("{n}", str(number)) if self.parts.query else ""
        always_new = self.options.connections == "new"
        head = (
            f"{self.options.method} {path} HTTP/1.1\r\nHost: {self.host}\r\n"
            "Accept-Encoding: gzip\r\nContent-Length: 0\r\n"
            + ("Connection: close\r\n\r\n" if always_new else "\r\n")
        ).encode()
        for last_try in (False, True):
            reader, writer, fresh = await self._connection(last_try or always_new)
            try:
                writer.write(head)
                answer = await reader.readuntil(b"\r\n\r\n")
            except (ConnectionError, asyncio.IncompleteReadError) as error:
                writer.close()
                begun = getattr(error, "partial", b"")
                if fresh or begun or last_try:
                    raise
                continue
            return await self._finish(reader, writer, answer)
        return None

    async def _finish(self, reader, writer, answer):
        lines = answer.decode("latin-1").split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:])}
        if headers.get("transfer-encoding") == "chunked":
            while size := int(await reader.readline(), 16):
                await reader.readexactly(size + 2)
            await reader.readline()
        else:
            await reader.readexactly(int(headers.get("content-length") or 0))
        if headers.get("connection", "").lower() == "close":
            writer.close()
        else:
            self.idle.append((reader, writer))
        return int(lines[0].split()[1])

    async def _connection(self, fresh):
        while self.idle and not fresh:
            reader, writer = self.idle.pop()
            if not reader.at_eof() and not writer.is_closing():
                return reader, writer, False
            writer.close()
        port = self.parts.port or (443 if self.tls else 80)
        return (*await asyncio.open_connection(self.parts.hostname, port, **self.tls), True)


async def run(options):
    client, asked, end = Client(options), [], asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, end.set)
    began = time.monotonic()
    for number in range(int(options.rate * options.seconds)):
        wait = began + number / options.rate - time.monotonic()
        if wait > 0:
            await asyncio.sleep(wait)
        if end.is_set():
            break
        asked.append(asyncio.ensure_future(client.ask(number)))
    await asyncio.gather(*asked)
    seconds = sorted(client.seconds)

    def at(share):
        return round(seconds[min(len(seconds) - 1, int(len(seconds) * share))] * 1000, 1)

    failed = sum(client.errors.values())
    return {
        "sent": client.sent,
        "ok": client.sent - failed,
        "failed": failed,
        "errors": dict(client.errors.most_common(10)),
        "p50_ms": at(0.5),
        "p99_ms": at(0.99),
        "max_ms": round(seconds[-1] * 1000, 1),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("--host", help="the Host header")
    parser.add_argument("--method", default="GET")
    parser.add_argument("--rate", type=float, default=100, help="requests a second")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--timeout", type=float, default=20, help="until a request has failed")
    parser.add_argument("--connections", choices=["kept", "new"], default="kept")
    parser.add_argument("--authority", help="file with the certificates that https trusts")
    parser.add_argument("--status", type=int, default=200, help="the status that is right")
    print(json.dumps(asyncio.run(run(parser.parse_args()))))


if __name__ == "__main__":
    main()
