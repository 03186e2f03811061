"""
Runs on an app host: sets keys through its twemproxy, so many a second, for so many seconds.

Prints, as JSON, how many operations there were, how many failed, and the slowest in seconds.
"""

import json
import socket
import sys
import time

TWEMPROXY = ("127.0.0.1", 22122)
KEYS = 50  # enough that each cache host has some


def main(seconds, rate):
    connection, operations, failed, slowest = None, 0, 0, 0.0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.monotonic()
        try:
            connection = connection or socket.create_connection(TWEMPROXY, timeout=2)
            failed += not stored(connection, f"probe:{operations % KEYS}")
        except OSError:
            connection, failed = None, failed + 1
        operations += 1
        took = time.monotonic() - began
        slowest = max(slowest, took)
        time.sleep(max(0, 1 / rate - took))
    print(json.dumps({"operations": operations, "failed": failed, "slowest": slowest}))


def stored(connection, key):
    connection.sendall(f"set {key} 0 60 2\r\nok\r\n".encode())
    answer = b""
    while not answer.endswith(b"\r\n"):
        part = connection.recv(4096)
        if not part:
            raise OSError("closed")
        answer += part
    return answer == b"STORED\r\n"


if __name__ == "__main__":
    main(float(sys.argv[1]), float(sys.argv[2]))
