"""An HTTP server that says what it was sent, on port 8080.

It has the endpoints of go-httpbin that tests use most, with the same answers: query parameters,
headers and form fields are lists of strings. Only Python's standard library is needed.
"""

import base64
import contextlib
import email.parser
import email.policy
import gzip
import json
import random
import socket
import sys
import time
import urllib.parse
import uuid
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT = 8080
MAX_BODY = 16 * 1024 * 1024
MAX_BYTES = 16 * 1024 * 1024
MAX_LINES = 100
MAX_DELAY = 10.0
JSON_TYPE = "application/json; charset=utf-8"


class Refused(Exception):
    """The request cannot be answered; the text says why."""

    def __init__(self, status, text):
        super().__init__(text)
        self.status = status


def number(text, most, kind=int):
    """A number of a path, from 0 to `most`."""
    try:
        value = kind(text)
    except ValueError:
        raise Refused(400, f"{text!r} is not a number") from None
    if not 0 <= value <= most:
        raise Refused(400, f"{text} is not between 0 and {most}")
    return value


def multipart(body, content_type):
    """Fields and files of a form."""
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(
        b"Content-Type: " + content_type.encode("latin-1") + b"\r\n\r\n" + body
    )
    form, files = {}, {}
    for part in message.iter_parts():
        name = part.get_param("name", "", header="content-disposition")
        text = (part.get_payload(decode=True) or b"").decode("utf-8", "replace")
        (form if part.get_filename() is None else files).setdefault(name, []).append(text)
    return form, files


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "httpbin"
    # A client that says nothing is not waited for for ever.
    timeout = 60

    # What came in.

    @property
    def base_url(self):
        scheme = self.headers.get("X-Forwarded-Proto", "http")
        return f"{scheme}://{self.headers.get('Host', f'localhost:{PORT}')}"

    @property
    def origin(self):
        forwarded = self.headers.get("X-Forwarded-For")
        return forwarded.split(",")[0].strip() if forwarded else self.client_address[0]

    def header_lists(self):
        lists = {}
        for name, value in self.headers.items():
            lists.setdefault("-".join(p.capitalize() for p in name.split("-")), []).append(value)
        return lists

    def read_body(self):
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            return self.read_chunks()
        return self.rfile.read(number(self.headers.get("Content-Length", "0"), MAX_BODY))

    def read_chunks(self):
        body = b""
        while True:
            size = int(self.rfile.readline(1024).split(b";")[0], 16)
            if size == 0:
                while self.rfile.readline(65536).strip():
                    pass
                return body
            if size + len(body) > MAX_BODY:
                raise Refused(413, "the body is too long")
            body += self.rfile.read(size)
            self.rfile.readline(1024)

    def echo(self, with_body):
        said = {
            "args": self.query,
            "headers": self.header_lists(),
            "method": self.command,
            "origin": self.origin,
            "url": self.base_url + self.path,
        }
        return {**said, **self.body_as_said()} if with_body else said

    def body_as_said(self):
        kind = self.headers.get("Content-Type", "")
        said = {"data": "", "files": {}, "form": {}, "json": None}
        if kind.startswith("application/x-www-form-urlencoded"):
            said["form"] = urllib.parse.parse_qs(self.body.decode("latin-1"), True)
        elif kind.startswith("multipart/form-data"):
            said["form"], said["files"] = multipart(self.body, kind)
        try:
            said["data"] = self.body.decode()
        except UnicodeDecodeError:
            encoded = base64.b64encode(self.body).decode()
            said["data"] = f"data:{kind or 'application/octet-stream'};base64,{encoded}"
        if "json" in kind:
            with contextlib.suppress(ValueError):
                said["json"] = json.loads(self.body)
        return said

    # What goes out.

    def answer(self, body=b"", status=200, kind="text/plain; charset=utf-8", headers=()):
        if isinstance(body, (dict, list)):
            body, kind = json.dumps(body, indent=2).encode() + b"\n", JSON_TYPE
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        has_body = status >= 200 and status not in (204, 304)
        if has_body:
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if has_body and self.command != "HEAD":
            self.wfile.write(body)

    def stream(self, pieces, kind):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if self.command == "HEAD":
            return
        for piece in pieces:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    def end_headers(self):
        self.send_header("Access-Control-Allow-Origin", self.headers.get("Origin", "*"))
        self.send_header("Access-Control-Allow-Credentials", "true")
        super().end_headers()

    def log_message(self, format, *args):
        sys.stdout.write(f"{self.address_string()} {format % args}\n")

    # Which endpoint.

    def handle_request(self):
        target = urllib.parse.urlsplit(self.path)
        self.query = urllib.parse.parse_qs(target.query, keep_blank_values=True)
        first, *rest = [urllib.parse.unquote(part) for part in target.path.split("/")[1:]] or [""]
        try:
            self.body = self.read_body()
            endpoint = getattr(self, "at_" + first.replace("-", "_").replace(".", "_"), None)
            if first == "":
                endpoint = self.at_index
            if endpoint is None:
                raise Refused(404, f"there is no endpoint /{first}")
            try:
                endpoint(*rest)
            except TypeError as error:
                # Too many or too few parts of the path.
                if error.__traceback__.tb_next is not None:
                    raise
                raise Refused(404, f"there is no endpoint {target.path}") from None
        except Refused as refused:
            self.close_connection = refused.status == 413
            self.answer({"status_code": refused.status, "error": str(refused)}, refused.status)
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = handle_request

    def only(self, *methods):
        if self.command == "OPTIONS":
            allowed = ", ".join(methods)
            headers = [("Allow", allowed), ("Access-Control-Allow-Methods", allowed)]
            self.answer(headers=headers)
            return False
        if self.command not in methods:
            raise Refused(405, f"{self.command} is not allowed here")
        return True

    # The endpoints.

    def at_index(self):
        names = sorted(name[3:].replace("_", "-") for name in dir(self) if name.startswith("at_"))
        self.answer("\n".join(["An HTTP server that says what it was sent:", *names, ""]).encode())

    def at_get(self):
        if self.only("GET", "HEAD"):
            self.answer(self.echo(with_body=False))

    def at_post(self):
        if self.only("POST"):
            self.answer(self.echo(with_body=True))

    def at_put(self):
        if self.only("PUT"):
            self.answer(self.echo(with_body=True))

    def at_patch(self):
        if self.only("PATCH"):
            self.answer(self.echo(with_body=True))

    def at_delete(self):
        if self.only("DELETE"):
            self.answer(self.echo(with_body=True))

    def at_anything(self, *_):
        self.answer(self.echo(with_body=True))

    def at_headers(self):
        self.answer({"headers": self.header_lists()})

    def at_ip(self):
        self.answer({"origin": self.origin})

    def at_user_agent(self):
        self.answer({"user-agent": self.headers.get("User-Agent", "")})

    def at_hostname(self):
        self.answer({"hostname": socket.gethostname()})

    def at_uuid(self):
        self.answer({"uuid": str(uuid.uuid4())})

    def at_status(self, codes):
        # Several, each with a weight: one of them.
        choices = [code.partition(":") for code in codes.split(",")]
        weights = [number(weight or "1", 1e6, float) for _, _, weight in choices]
        code = number(random.choices([code for code, _, _ in choices], weights)[0], 599)
        if code < 200:
            raise Refused(400, f"{code} is not the status of an answer")
        headers = []
        if code in (301, 302, 303, 307, 308):
            headers.append(("Location", "/redirect/1"))
        if code == 401:
            headers.append(("WWW-Authenticate", 'Basic realm="Fake Realm"'))
        self.answer(status=code, headers=headers)

    def at_delay(self, seconds):
        time.sleep(number(seconds.removesuffix("s"), MAX_DELAY, float))
        self.answer(self.echo(with_body=True))

    def at_stream(self, count):
        said = self.echo(with_body=False)
        lines = number(count, MAX_LINES)
        pieces = (json.dumps({"id": id, **said}).encode() + b"\n" for id in range(lines))
        self.stream(pieces, JSON_TYPE)

    def random_bytes(self, count):
        seed = self.query.get("seed", [None])[0]
        return random.Random(seed).randbytes(number(count, MAX_BYTES))

    def at_bytes(self, count):
        self.answer(self.random_bytes(count), kind="application/octet-stream")

    def at_stream_bytes(self, count):
        content = self.random_bytes(count)
        size = max(1, number(self.query.get("chunk_size", ["10240"])[0], MAX_BYTES))
        pieces = (content[at : at + size] for at in range(0, len(content), size))
        self.stream(pieces, "application/octet-stream")

    def at_drip(self):
        def query(name, default):
            return self.query.get(name, [default])[0].removesuffix("s")

        duration = number(query("duration", "2"), MAX_DELAY, float)
        count = number(query("numbytes", "10"), MAX_BYTES)
        time.sleep(number(query("delay", "0"), MAX_DELAY, float))

        def drops():
            for index in range(count):
                if index > 0:
                    time.sleep(duration / max(1, count - 1))
                yield b"*"

        self.stream(drops(), "application/octet-stream")

    def at_redirect(self, count):
        left = number(count, 100)
        self.redirect("/get" if left <= 1 else f"/redirect/{left - 1}")

    def at_relative_redirect(self, count):
        left = number(count, 100)
        self.redirect("/get" if left <= 1 else f"/relative-redirect/{left - 1}")

    def at_absolute_redirect(self, count):
        left = number(count, 100)
        self.redirect(self.base_url + ("/get" if left <= 1 else f"/absolute-redirect/{left - 1}"))

    def at_redirect_to(self):
        url = self.query.get("url", [""])[0]
        if not url or any(character in url for character in "\r\n"):
            raise Refused(400, "the parameter url is missing")
        self.redirect(url, number(self.query.get("status_code", ["302"])[0], 399))

    def redirect(self, url, status=302):
        self.answer(status=status, headers=[("Location", url)])

    def credentials(self):
        kind, _, encoded = self.headers.get("Authorization", "").partition(" ")
        try:
            user, _, password = base64.b64decode(encoded).decode().partition(":")
        except ValueError:
            return None
        return (user, password) if kind.lower() == "basic" else None

    def at_basic_auth(self, user, password):
        if self.credentials() == (user, password):
            self.answer({"authenticated": True, "authorized": True, "user": user})
        else:
            challenge = [("WWW-Authenticate", 'Basic realm="Fake Realm"')]
            refusal = {"authenticated": False, "authorized": False, "user": ""}
            self.answer(refusal, 401, headers=challenge)

    def at_hidden_basic_auth(self, user, password):
        if self.credentials() != (user, password):
            raise Refused(404, "there is nothing here")
        self.answer({"authenticated": True, "authorized": True, "user": user})

    def at_bearer(self):
        kind, _, token = self.headers.get("Authorization", "").partition(" ")
        if kind.lower() == "bearer" and token:
            self.answer({"authenticated": True, "token": token})
        else:
            self.answer(status=401, headers=[("WWW-Authenticate", "Bearer")])

    def at_cookies(self, action=""):
        if action == "":
            pairs = (pair.partition("=") for pair in self.headers.get("Cookie", "").split(";"))
            self.answer({"cookies": {k.strip(): v.strip() for k, eq, v in pairs if eq}})
            return
        if action not in ("set", "delete"):
            raise Refused(404, f"there is no endpoint /cookies/{action}")
        ends = "; Max-Age=0" if action == "delete" else ""
        names = {name: urllib.parse.quote(values[0]) for name, values in self.query.items()}
        set_cookies = [
            ("Set-Cookie", f"{urllib.parse.quote(name)}={'' if ends else value}; Path=/{ends}")
            for name, value in names.items()
        ]
        self.answer(status=302, headers=[("Location", "/cookies"), *set_cookies])

    def at_gzip(self):
        said = json.dumps({**self.echo(with_body=False), "gzipped": True}).encode()
        self.answer(gzip.compress(said), kind=JSON_TYPE, headers=[("Content-Encoding", "gzip")])

    def at_deflate(self):
        said = json.dumps({**self.echo(with_body=False), "deflated": True}).encode()
        self.answer(zlib.compress(said), kind=JSON_TYPE, headers=[("Content-Encoding", "deflate")])

    def at_json(self):
        self.answer({"slideshow": {"title": "Sample Slide Show", "slides": [{"title": "One"}]}})

    def at_html(self):
        page = b"<!DOCTYPE html>\n<html><body><h1>httpbin</h1></body></html>\n"
        self.answer(page, kind="text/html; charset=utf-8")

    def at_base64(self, *parts):
        if len(parts) == 2 and parts[0] == "encode":
            self.answer(base64.urlsafe_b64encode(parts[1].encode()))
            return
        text = parts[-1] if parts else ""
        try:
            self.answer(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        except ValueError:
            raise Refused(400, f"{text!r} is not base64") from None

    def at_response_headers(self):
        safe = {
            name: values
            for name, values in self.query.items()
            if not any(character in name + "".join(values) for character in "\r\n")
        }
        headers = [(name, value) for name, values in safe.items() for value in values]
        self.answer(safe, headers=headers)

    def at_etag(self, etag):
        tag = '"' + etag.replace('"', "").replace("\r", "").replace("\n", "") + '"'
        matches = self.headers.get("If-None-Match", "") in (tag, "*")
        if matches:
            self.answer(status=304, headers=[("ETag", tag)])
        else:
            self.answer(self.echo(with_body=False), headers=[("ETag", tag)])

    def at_cache(self, *_):
        conditional = "If-None-Match" in self.headers or "If-Modified-Since" in self.headers
        self.answer({} if conditional else self.echo(with_body=False), 304 if conditional else 200)

    def at_robots_txt(self):
        self.answer(b"User-agent: *\nDisallow: /deny\n")


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256


if __name__ == "__main__":
    Server(("0.0.0.0", PORT), Handler).serve_forever()
