"""A server of one's own, for as long as it is measured."""

import contextlib
import http.client
import socket
import subprocess
import time


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def serving(realm, model, *arguments):
    """Runs `realm serve` with a model directory, called `m`, and more arguments; gives the API's port once it is ready."""
    port, admin = free_port(), free_port()
    command = [realm, "serve", "--model", f"m={model}", "--port", str(port), "--log", "warn"]
    server = subprocess.Popen([*command, "--admin-addr", f"127.0.0.1:{admin}", *arguments])
    try:
        while True:
            try:
                connection = http.client.HTTPConnection("127.0.0.1", admin, timeout=5)
                connection.request("GET", "/ready")
                if connection.getresponse().status == 200:
                    break
            except OSError:
                pass
            if server.poll() is not None:
                raise SystemExit("the server has ended")
            time.sleep(0.2)
        yield port
    finally:
        server.terminate()
        server.wait()
