#!/usr/bin/env python3
"""
A time server (NTP, RFC 5905) that says what this machine's clock does: for tests of who asks it.

    python3 tests/farm/time_server.py 198.18.0.1
"""

import socket
import struct
import sys
import time

# Seconds from 1900, which NTP counts from, to 1970.
EPOCH = 2208988800


def stamp():
    seconds = time.time() + EPOCH
    return struct.pack("!II", int(seconds), int(seconds % 1 * 2**32))


def answer(question, received):
    """The packet of a server whose own clock is its source."""
    version = question[0] >> 3 & 7
    head = struct.pack("!BBbb", version << 3 | 4, 1, 6, -20)
    head += struct.pack("!II4s", 0, 1 << 10, b"LOCL")
    return head + received + question[40:48] + received + stamp()


def main():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((sys.argv[1], 123))
        while True:
            question, client = server.recvfrom(512)
            if len(question) >= 48:
                server.sendto(answer(question, stamp()), client)


if __name__ == "__main__":
    main()
