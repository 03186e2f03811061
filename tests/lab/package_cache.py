"""
A proxy that keeps Debian packages, so that a farm downloads each of them once.

It keeps what never changes under its name (``.deb`` files, and indexes fetched by their digest)
and passes everything else through. A file gets its name when it is complete, so several proxies
can share a folder.

Usage: package_cache.py ADDRESS PORT FOLDER [PROXY]

PROXY is the http:// address of the proxy that the machine itself must use, if there is one.
"""

import contextlib
import hashlib
import http.client
import http.server
import os
import pathlib
import shutil
import sys
import tempfile
import urllib.parse

BLOCK = 1 << 18
PASSED_DOWN = ("If-Modified-Since", "Range", "User-Agent", "Accept")
PASSED_UP = ("Content-Type", "Content-Length", "Last-Modified", "Content-Range", "Location")
TIMEOUT = 60


def is_immutable(path):
    """Whether what a URL's path names can never change."""
    return path.endswith(".deb") or "/by-hash/" in path


def file_for(folder, url):
    """Where a URL's content is kept: a digest, and its own last part for people who look."""
    digest = hashlib.sha256(url.encode()).hexdigest()
    return folder / digest[:2] / f"{digest[:24]}-{url.rsplit('/', 1)[-1][-100:]}"


class Proxy(http.server.BaseHTTPRequestHandler):
    """One connection from apt."""

    protocol_version = "HTTP/1.1"
    folder = pathlib.Path()
    beyond = None  # the proxy to ask instead of the servers themselves, split

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        if url.scheme != "http" or not url.hostname:
            self.send_error(400, "Only http:// addresses are fetched here")
            return
        kept = file_for(self.folder, self.path)
        if kept.exists():
            self._send_kept(kept)
            return
        try:
            self._fetch(url, kept)
        except (OSError, http.client.HTTPException) as error:
            self.close_connection = True
            self.log_error("%s: %s", self.path, error)

    def log_request(self, *_):
        """Nothing: what was kept and what was fetched is logged by name."""

    def _send_kept(self, kept):
        self.log_message("kept %s", self.path)
        with kept.open("rb") as file:
            self.send_response(200)
            self.send_header("Content-Length", str(os.fstat(file.fileno()).st_size))
            self.end_headers()
            shutil.copyfileobj(file, self.wfile, BLOCK)

    def _fetch(self, url, kept):
        self.log_message("fetched %s", self.path)
        server = self.beyond or url
        upstream = http.client.HTTPConnection(server.hostname, server.port or 80, timeout=TIMEOUT)
        keeping = is_immutable(url.path)
        headers = {n: self.headers[n] for n in PASSED_DOWN if n in self.headers}
        if keeping:
            headers.pop("Range", None)
            headers.pop("If-Modified-Since", None)
        headers["Host"] = url.netloc
        target = self.path if self.beyond else url._replace(scheme="", netloc="").geturl()
        try:
            upstream.request("GET", target, headers=headers)
            answer = upstream.getresponse()
        except (OSError, http.client.HTTPException) as error:
            self.send_error(502, f"{server.hostname} can't be reached: {error}")
            return
        self.send_response(answer.status)
        for name in PASSED_UP:
            if answer.getheader(name):
                self.send_header(name, answer.getheader(name))
        self.end_headers()
        unchanged = answer.status == http.HTTPStatus.NOT_MODIFIED
        length = 0 if unchanged else int(answer.getheader("Content-Length") or -1)
        with tempfile.NamedTemporaryFile(dir=self.folder, prefix=".partial-") as file:
            while block := answer.read(BLOCK):
                file.write(block)
                whole = keeping and file.tell() == length
                if whole and answer.status == http.HTTPStatus.OK:
                    self._keep(file, kept)  # before the client has it all and asks again
                self.wfile.write(block)
            complete = file.tell() == length
        # What was cut short, or has no stated end, ends with the connection.
        self.close_connection = self.close_connection or not complete
        upstream.close()

    def _keep(self, file, kept):
        file.flush()
        kept.parent.mkdir(exist_ok=True)
        with contextlib.suppress(FileExistsError):  # another was faster
            os.link(file.name, kept)


def serve(address, port, folder, beyond=None):
    """A server on an address and port, keeping packages in a folder. Returns it, not yet begun."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"folder": folder, "beyond": urllib.parse.urlsplit(beyond) if beyond else None}
    handler = type("Handler", (Proxy,), facts)
    return http.server.ThreadingHTTPServer((address, port), handler)


def main():
    address, port, folder, *beyond = sys.argv[1:]
    serve(address, int(port), pathlib.Path(folder), beyond[0] if beyond else None).serve_forever()


if __name__ == "__main__":
    main()
