"""What runs inside a sandbox: it counts, and remembers what it is told, in memory and in a file.

`GET /` answers with all of it; `POST /N` remembers the number N. Numbers only ever grow: one that
arrives late, from a request whose client is long gone, is not remembered out of order.
"""

import hashlib
import http.server
import json
import os
import threading
import time
import uuid

HOME = "/home/user"
LOG = f"{HOME}/log"
UPLOADS = f"{HOME}/uploads"

nonce = uuid.uuid4().hex
count = 0
memory = []
lock = threading.Lock()


def read_log():
    try:
        with open(LOG) as file:
            return [int(line) for line in file]
    except FileNotFoundError:
        return []


def count_up():
    global count
    while True:
        count += 1
        time.sleep(0.02)


def digests():
    found = {}
    for name in os.listdir(UPLOADS) if os.path.isdir(UPLOADS) else []:
        with open(f"{UPLOADS}/{name}", "rb") as file:
            found[name] = hashlib.sha256(file.read()).hexdigest()
    return found


def identity():
    with open("/run/e2b/.E2B_SANDBOX_ID") as file:
        return file.read().strip()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        with lock:
            log = read_log()
            state = dict(
                nonce=nonce, count=count, memory=memory, log=log, uploads=digests(), id=identity()
            )
        self.answer(json.dumps(state).encode())

    def do_POST(self):
        number = int(self.path.strip("/"))
        with lock:
            if not memory or number > memory[-1]:
                # Open only for this moment would hide a file that is open while it is paused.
                file.write(f"{number}\n")
                file.flush()
                memory.append(number)
        self.answer(b"{}")

    def answer(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


memory = read_log()
file = open(LOG, "a")  # noqa: SIM115
threading.Thread(target=count_up, daemon=True).start()
http.server.ThreadingHTTPServer(("0.0.0.0", 8000), Handler).serve_forever()
