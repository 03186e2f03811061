"""
Where a log host passes its lines on to: a syslog server, and what answers like Elasticsearch.

    python3 tests/farm/receivers.py syslog 6514 lines --transport tls --certificate server.pem
    python3 tests/farm/receivers.py bulk 9200 documents --user me --password secret

What came is appended to a file: syslog messages as they are, documents as JSON with their index.
Elasticsearch itself isn't among the packages of the systems that are tested: ``bulk`` stands in for
it. It takes the bulk API as its documentation describes that, and is as strict: no type, a content
type, a line feed at the end. A number in a file beside the documents, ``<documents>.busy``, makes
it refuse as a cluster does that is starting (503), has more to do than it can (429, for each
second document), or can make nothing of a document (400, likewise).
"""

import argparse
import base64
import contextlib
import http.server
import json
import pathlib
import socketserver
import ssl
import sys
import time

ACTIONS = {"index", "create"}


class Lines(socketserver.StreamRequestHandler):
    """Messages over TCP, each after the count of its octets (RFC 6587)."""

    def handle(self):
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while count := self._count():
                self.server.take(self.rfile.read(count))

    def _count(self):
        digits = b""
        while (octet := self.rfile.read(1)).isdigit():
            digits += octet
        return int(digits or 0)


class Datagrams(socketserver.BaseRequestHandler):
    """Messages over UDP, one in each datagram (RFC 5426)."""

    def handle(self):
        self.server.take(self.request[0])


class Bulk(http.server.BaseHTTPRequestHandler):
    """The bulk API, and the question whether the server lives."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self._answer(200, {"status": "green"})

    def do_HEAD(self):
        self.do_GET()

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        given = self.headers.get("Authorization", "")
        if given != self.server.options.authorization:
            return self._answer(401, _problem(401, "security_exception"))
        if self.path.partition("?")[0] != "/_bulk":
            return self._answer(405, _problem(405, "no such path"))
        kind = self.headers.get("Content-Type", "").partition(";")[0]
        if kind not in ("application/json", "application/x-ndjson"):
            return self._answer(406, _problem(406, f"Content-Type {kind!r} is not supported"))
        if self.server.busy() == 503:
            return self._answer(503, _problem(503, "cluster_block_exception"))
        try:
            pairs = _pairs(body)
        except ValueError as error:
            return self._answer(400, _problem(400, str(error)))
        status = self.server.busy()
        items = [self._item(number % 2 and status, *pair) for number, pair in enumerate(pairs)]
        errors = any("error" in told for item in items for told in item.values())
        return self._answer(200, {"took": 1, "errors": errors, "items": items})

    def _item(self, status, action, about, document):
        found = {"_index": about["_index"], "_id": about.get("_id") or str(time.time_ns())}
        if status:
            kinds = {429: "es_rejected_execution_exception", 400: "document_parsing_exception"}
            reason = {"type": kinds[status], "reason": "it isn't taken"}
            return {action: {**found, "status": status, "error": reason}}
        if action == "create" and found["_id"] in self.server.known:
            reason = {"type": "version_conflict_engine_exception", "reason": "it exists"}
            return {action: {**found, "status": 409, "error": reason}}
        self.server.known.add(found["_id"])
        self.server.take(json.dumps({"index": about["_index"], **document}).encode())
        return {action: {**found, "status": 201, "result": "created"}}

    def _answer(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *words):
        """Say nothing."""


def _problem(status, reason):
    return {"error": {"type": reason, "reason": reason}, "status": status}


def _pairs(body):
    """The documents of a request, each with what is said about it; raises for what isn't right."""
    if not body.endswith(b"\n"):
        raise ValueError("The bulk request must be terminated by a newline [\\n]")
    lines = body.decode().splitlines()
    found = []
    for line, text in zip(lines[::2], lines[1::2], strict=True):
        ((action, about),) = json.loads(line).items()
        unknown = set(about) - {"_index", "_id", "pipeline", "routing", "require_alias"}
        if action not in ACTIONS or unknown or not about.get("_index"):
            raise ValueError(f"Malformed action/metadata line: {line}")
        document = json.loads(text)
        if not isinstance(document, dict):
            raise ValueError("A document is an object")
        found.append((action, about, document))
    return found


class Receiver:
    """What all servers share: where what they take goes."""

    allow_reuse_address = daemon_threads = True
    options = context = None

    def __init__(self, *arguments):
        self.known = set()
        super().__init__(*arguments)

    def take(self, message):
        with open(self.options.file, "ab") as file:
            file.write(message.rstrip(b"\n") + b"\n")

    def busy(self):
        path = pathlib.Path(f"{self.options.file}.busy")
        return int(path.read_text()) if path.exists() else 0

    def finish_request(self, request, client_address):
        if self.context:
            # In the thread of the connection: a client that says nothing holds up nobody.
            request = self.context.wrap_socket(request, server_side=True)
        super().finish_request(request, client_address)

    def handle_error(self, request, client_address):
        print(client_address, sys.exc_info()[1], file=sys.stderr)


class OverTcp(Receiver, socketserver.ThreadingTCPServer):
    pass


class OverUdp(Receiver, socketserver.UDPServer):
    pass


def main():
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("kind", choices=["syslog", "bulk"])
    parser.add_argument("port", type=int)
    parser.add_argument("file")
    parser.add_argument("--transport", choices=["tls", "tcp", "udp"], default="tcp")
    parser.add_argument("--certificate", help="with its key, in one file")
    parser.add_argument("--user", default="")
    parser.add_argument("--password", default="")
    options = parser.parse_args()
    who = base64.b64encode(f"{options.user}:{options.password}".encode()).decode()
    options.authorization = f"Basic {who}" if options.user else ""
    kind = OverUdp if options.transport == "udp" else OverTcp
    handler = {"bulk": Bulk, "syslog": Datagrams if kind is OverUdp else Lines}[options.kind]
    server = kind(("", options.port), handler)
    server.options = options
    if options.transport == "tls":
        server.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.context.load_cert_chain(options.certificate)
    server.serve_forever()


if __name__ == "__main__":
    main()
