"""A relay between a client and the server: it can hold all data back, and cut every connection."""

import contextlib
import socket
import threading


class Relay:
    """Passes bytes on to a port of this machine from the address `url`."""

    def __init__(self, port: int):
        self._to = port
        self._sockets: list[socket.socket] = []
        self._flows = threading.Event()
        self._flows.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._accept)]
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads[0].start()

    def hold(self) -> None:
        """Let nothing through until `go_on`."""
        self._flows.clear()

    def go_on(self) -> None:
        """Let through everything that was held back."""
        self._flows.set()

    def cut(self) -> None:
        """End every connection."""
        for end in list(self._sockets):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End every connection and accept no new one."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self.go_on()
        self.cut()
        for thread in self._threads:
            thread.join()
        for end in (self._listener, *self._sockets):
            end.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._sockets.append(client)
                try:
                    server = socket.create_connection(("127.0.0.1", self._to))
                except OSError:  # no server is listening now
                    client.shutdown(socket.SHUT_RDWR)
                    continue
                self._sockets.append(server)
                for pair in ((client, server), (server, client)):
                    self._threads.append(threading.Thread(target=self._pump, args=pair))
                    self._threads[-1].start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._flows.wait()
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
