"""A server that speaks OpenAI's chat completions, with planned replies, for tests of `fdb.judge`."""

import contextlib
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, str]  # status, and the model's words


class JudgeServer:
    """Gives the replies one after another, the last one for ever, and keeps what it was asked."""

    def __init__(self, *replies: Reply):
        self.requests = list[tuple[str, dict[str, str], Any]]()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, words = replies[min(len(server.requests), len(replies) - 1)]
                server.requests.append((self.path, dict(self.headers), body))
                data = (
                    words.encode()
                    if status != 200
                    else json.dumps({"choices": [{"message": {"content": words}}]}).encode()
                )
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


class BluntServer:
    """Sends the same parts to every caller, with a pause after each, and then leaves the connection open."""

    def __init__(self, *parts: bytes, pause_s: float = 0.0):
        self._parts, self._pause_s = parts, pause_s
        self._socket, self._callers = socket.create_server(("127.0.0.1", 0)), list[socket.socket]()
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # until it is closed
            while True:
                caller, _ = self._socket.accept()
                self._callers.append(caller)
                threading.Thread(target=self._answer, args=(caller,), daemon=True).start()

    def _answer(self, caller: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the caller has gone
            caller.recv(65536)
            for part in self._parts:
                caller.sendall(part)
                time.sleep(self._pause_s)

    def close(self) -> None:
        for one in (self._socket, *self._callers):
            one.close()
