"""The agent's end of a socket, played by script in a thread: every byte is written out by the tests."""

from __future__ import annotations

import json
import os
import socket
import struct
import tempfile
import threading
from typing import Any, Callable, Optional

GREETING = b"ZLCL\x01\x00\x01\x00"
GREETING_ANSWER = b"ZLCL\x01\x00\x00\x00"
STUCK_SECS = 30
"""A script that does not fit the client fails by this time instead of hanging."""


def frame(kind: int, request: int, body: bytes = b"") -> bytes:
    return struct.pack("<HHIII", kind, 0, request, len(body), 0) + body


class ScriptedAgent:
    """Listens on a socket of its own and plays ``script`` to whoever connects."""

    def __init__(self, script: Callable[[ScriptedAgent], None], greeting: bytes = GREETING_ANSWER) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.path = os.path.join(self._folder.name, "agent.sock")
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.path)
        self._listener.listen(1)
        self._script = script
        self._greeting = greeting
        self._error: Optional[BaseException] = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> ScriptedAgent:
        self._thread.start()
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        self._thread.join(STUCK_SECS)
        self._listener.close()
        self._folder.cleanup()
        if self._error is not None:
            raise AssertionError(f"the script went wrong: {self._error}") from self._error
        if self._thread.is_alive() and kind is None:
            raise AssertionError("the script did not play to its end")

    def wait(self) -> None:
        """Waits until the script has played and the agent's end is closed."""
        self._thread.join(STUCK_SECS)

    def expect(self, content: bytes) -> None:
        found = self.read(len(content))
        if found != content:
            raise AssertionError(f"expected {content!r}, found {found!r}")

    def read(self, count: int) -> bytes:
        found = b""
        while len(found) < count:
            part = self.connection.recv(count - len(found))
            if not part:
                raise AssertionError(f"the client closed after {found!r}")
            found += part
        return found

    def expect_json(self, kind: int, request: int) -> Any:
        found, flags, number, length, reserved = struct.unpack("<HHIII", self.read(16))
        if (found, flags, number, reserved) != (kind, 0, request, 0):
            raise AssertionError(f"expected type {kind} of request {request}, found {found} of {number}")
        return json.loads(self.read(length))

    def expect_end(self) -> None:
        rest = self.connection.recv(1)
        if rest:
            raise AssertionError(f"expected the end, found {rest!r}")

    def send(self, content: bytes) -> None:
        self.connection.sendall(content)

    def send_json(self, kind: int, request: int, value: Any) -> None:
        self.send(frame(kind, request, json.dumps(value).encode()))

    def _run(self) -> None:
        try:
            self._listener.settimeout(STUCK_SECS)
            self.connection, _ = self._listener.accept()
            with self.connection:
                self.connection.settimeout(STUCK_SECS)
                self.expect(GREETING)
                self.send(self._greeting)
                self._script(self)
        except BaseException as error:
            self._error = error
