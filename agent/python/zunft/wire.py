"""Frames over the agent's socket: which answers which, what was refused, what happened meanwhile.

The protocol is docs/local-socket.md. It does not know what a recording or an embodiment is.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import time
from collections import deque
from typing import Any, Deque, Dict, List, Optional, Tuple

from .errors import ConnectError, ConnectionLost, ProtocolError, Refusal, Refused, TimedOut

BEGIN, STEP, END, PROGRESS, ACT, STATUS, SUBSCRIBE, ECHO, SAMPLE = range(1, 10)
BEGUN, ENDED, PROGRESS_IS, ACTION, STATUS_IS, SUBSCRIBED, ECHOED = 129, 131, 132, 133, 134, 135, 136
EVENT, ERROR = 192, 255

BODY_BYTES_MAX = 4 * 1024 * 1024 + 4096
"""Largest body of a frame, in either direction."""

EVENTS_MAX = 256
"""Events kept for a program that does not read them; the oldest go first, as in the agent."""

REFUSALS_MAX = 64
"""Refusals kept with their text; more are only counted. They say the same thing over and over."""

STEPS_UNREAD_MAX = 64
"""Steps sent between two looks at what the agent sent back: so many refusals fit the socket's buffer."""

STEP_REQUEST = 1 << 31
"""Set in the number of a STEP, whose other bits count the recording's steps; calls count below it, from 1."""

SAMPLE_REQUEST = 3 << 30
"""Set in the number of a SAMPLE; 8 bits for its feature follow, and 22 that count the feature's samples."""

_COUNT_BITS = 22

_HEADER = struct.Struct("<HHIII")
_MAGIC = b"ZLCL"
_VERSION = 1


class Connection:
    """A greeted connection. Not for several threads at once: give each its own."""

    def __init__(self, path: str, timeout: Optional[float]) -> None:
        self.timeout = timeout
        self.refused = 0
        self.refusals: List[Refusal] = []
        self.streams: Dict[int, str] = {}
        """Names of the open recording's streams, by their features' places."""
        self.events: Deque[Dict[str, Any]] = deque(maxlen=EVENTS_MAX)
        self._request = 0
        self._steps_unread = 0
        self._inbox = bytearray()
        self._failed = False
        self._socket = _connect(path, timeout)
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)

    def close(self) -> None:
        """Closes the connection; further calls fail."""
        self._failed = True
        self._socket.close()

    @property
    def failed(self) -> bool:
        """Whether only a new connection can help."""
        return self._failed

    def call(self, name: str, kind: int, answer: int, body: bytes = b"", *, must_answer: bool = False) -> bytes:
        """Sends a request and waits for its answer.

        With ``must_answer`` a call that nobody waited for to the end leaves the connection useless.
        """
        self._request = self._request % (STEP_REQUEST - 1) + 1
        self._send(name, kind, self._request, body)
        deadline = None if self.timeout is None else time.monotonic() + self.timeout
        answered = False
        try:
            while True:
                frame = self._receive(deadline)
                if frame is None:
                    raise TimedOut(f"the agent did not answer {name} within {self.timeout} s")
                found, request, content = frame
                if request != self._request or found == EVENT:
                    self._note(name, found, request, content)
                    continue
                answered = True
                self._steps_unread = 0
                if found == ERROR:
                    raise Refused(name, *_error(content))
                if found != answer:
                    raise self._broken(f"the agent answered {name} with frame type {found}")
                return content
        finally:
            if must_answer and not answered:
                self._failed = True

    def send_step(self, step: int, body: bytes) -> None:
        """Sends a step, and does not wait for its fate."""
        self._send("STEP", STEP, STEP_REQUEST | step, body)
        self._steps_unread += 1
        if self._steps_unread >= STEPS_UNREAD_MAX:
            self.drain()

    def send_sample(self, feature: int, count: int, prefix: bytes, content: Any) -> None:
        """Sends a sample of a stream of its own, and does not wait for its fate."""
        request = SAMPLE_REQUEST | feature << _COUNT_BITS | count & ((1 << _COUNT_BITS) - 1)
        self._send("SAMPLE", SAMPLE, request, prefix, content)
        self._steps_unread += 1
        if self._steps_unread >= STEPS_UNREAD_MAX:
            self.drain()

    def drain(self, name: str = "STEP") -> None:
        """Takes in whatever is here already."""
        self._steps_unread = 0
        while True:
            frame = self._receive(0.0)
            if frame is None:
                return
            self._note(name, *frame)

    def take_event(self, timeout: Optional[float]) -> Optional[Dict[str, Any]]:
        """The next event, after waiting for it."""
        self.drain()
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self.events:
            frame = self._receive(deadline)
            if frame is None:
                return None
            self._note("SUBSCRIBE", *frame)
        return self.events.popleft()

    def take_refusals(self) -> Tuple[int, List[Refusal]]:
        """How many steps were refused since this was last asked, and the first of them."""
        taken = self.refused, self.refusals
        self.refused, self.refusals = 0, []
        return taken

    def _send(self, name: str, kind: int, request: int, *body: Any) -> None:
        if self._failed:
            raise ConnectionLost("the connection is closed or failed before; connect again")
        length = sum(len(part) for part in body)
        if length > BODY_BYTES_MAX:
            raise ValueError(f"{name} has {length} bytes; at most {BODY_BYTES_MAX} are allowed")
        whole = False
        try:
            self._socket.sendall(b"".join((_HEADER.pack(kind, 0, request, length, 0), *body)))
            whole = True
        except BrokenPipeError:
            self.drain(name)  # An agent that closes says why first: that is the better error.
            raise ConnectionLost("the agent closed the connection; its log says why") from None
        except OSError as error:
            raise ConnectionLost(f"the agent's socket failed: {error}") from error
        finally:
            # After half a frame, by Ctrl-C for example, nobody can tell what the next bytes mean.
            self._failed = self._failed or not whole

    def _receive(self, deadline: Optional[float]) -> Optional[Tuple[int, int, bytes]]:
        while True:
            frame = self._take_frame()
            if frame is not None:
                return frame
            if self._failed:
                raise ConnectionLost("the connection is closed or failed before; connect again")
            if deadline is not None and not self._readable(deadline):
                return None
            try:
                read = self._socket.recv(65536)
            except OSError as error:
                self._failed = True
                raise ConnectionLost(f"the agent's socket failed: {error}") from error
            if not read:
                self._failed = True
                raise ConnectionLost("the agent closed the connection; its log says why")
            self._inbox += read

    def _readable(self, deadline: float) -> bool:
        left = max(0.0, deadline - time.monotonic()) if deadline else 0.0
        # Rounded up: a wait must not end before its deadline.
        return bool(self._poll.poll(-(-left * 1000 // 1)))

    def _take_frame(self) -> Optional[Tuple[int, int, bytes]]:
        if len(self._inbox) < _HEADER.size:
            return None
        kind, flags, request, length, reserved = _HEADER.unpack_from(self._inbox)
        if flags or reserved or length > BODY_BYTES_MAX:
            raise self._broken("the agent sent a frame header that version 1 does not have")
        end = _HEADER.size + length
        if len(self._inbox) < end:
            return None
        body = bytes(self._inbox[_HEADER.size : end])
        del self._inbox[:end]
        return kind, request, body

    def _note(self, name: str, kind: int, request: int, body: bytes) -> None:
        """Takes in a frame that answers no call that is waiting."""
        of_a_step = bool(request & STEP_REQUEST)
        if kind == EVENT:
            self.events.append(read_json("EVENT", body))
        elif kind == ERROR:
            code, message = _error(body)
            # 0 is no request of ours: the agent speaks of the connection as a whole.
            if code == "bad-frame" or request == 0:
                self._failed = True
                raise Refused(name, code, message)
            if of_a_step:
                self.refused += 1
                if len(self.refusals) < REFUSALS_MAX:
                    self.refusals.append(self._refusal(request, code, message))
        elif of_a_step or request == self._request:
            raise self._broken(f"the agent sent frame type {kind}, which answers nothing")
        # What remains is the answer to a call that gave up waiting.

    def _refusal(self, request: int, code: str, message: str) -> Refusal:
        count = request & ~SAMPLE_REQUEST
        if request & SAMPLE_REQUEST != SAMPLE_REQUEST:
            return Refusal(count, code, message)
        feature, count = count >> _COUNT_BITS, count & ((1 << _COUNT_BITS) - 1)
        return Refusal(count, code, message, self.streams.get(feature, f"feature {feature}"))

    def _broken(self, message: str) -> ProtocolError:
        self._failed = True
        return ProtocolError(message)


def read_json(frame: str, body: bytes) -> Dict[str, Any]:
    """The JSON object that a frame carries."""
    try:
        value = json.loads(body.decode("utf-8"))
    except ValueError as error:
        raise ProtocolError(f"the agent's {frame} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ProtocolError(f"the agent's {frame} is not a JSON object")
    return value


def write_json(value: Dict[str, Any]) -> bytes:
    """``value`` as a frame carries it."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode("utf-8")


def _error(body: bytes) -> Tuple[str, str]:
    value = read_json("ERROR", body)
    return str(value.get("code")), str(value.get("message"))


def _connect(path: str, timeout: Optional[float]) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout)
        connection.connect(path)
        try:
            connection.sendall(_MAGIC + struct.pack("<HH", _VERSION, _VERSION))
        except BrokenPipeError:
            pass  # An agent that is full greets, says so and closes before it hears us.
        answer = b""
        while len(answer) < 8:
            read = connection.recv(8 - len(answer))
            if not read:
                raise ConnectError(f"the agent at {path} closed the connection while greeting; its log says why")
            answer += read
        version = struct.unpack_from("<H", answer, 4)[0]
        if answer[:4] != _MAGIC:
            raise ConnectError(f"what listens at {path} is not a Zunft agent; give the `socket` of its configuration")
        if version != _VERSION:
            raise ConnectError(
                f"the agent at {path} refuses version {_VERSION} of the local protocol; upgrade the older one, agent or program"
            )
        connection.settimeout(None)
        return connection
    except ConnectError:
        connection.close()
        raise
    except (FileNotFoundError, ConnectionRefusedError) as error:
        connection.close()
        raise ConnectError(
            f"no agent listens at {path}; start it with `zunft-agent run --config agent.toml`, "
            "or give the `socket` of its configuration"
        ) from error
    except PermissionError as error:
        connection.close()
        raise ConnectError(
            f"not allowed to open {path}; run this program as a user that may write to the agent's socket"
        ) from error
    except OSError as error:
        connection.close()
        raise ConnectError(f"could not greet the agent at {path}: {error}") from error
