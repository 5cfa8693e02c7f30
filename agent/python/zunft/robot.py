"""A control program's robot: record what happens, and ask a skill what to do.

Steps are written at once, so that what was recorded outlives the program, and nobody waits for their fate: refusals
are collected, and told by ``progress``, ``end`` or ``take_refusals``.
"""

from __future__ import annotations

import os
import struct
import time
from types import TracebackType
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Tuple, Type, Union

import numpy as np

from . import wire
from .embodiment import IMAGES_PREFIX, Embodiment
from .errors import ProtocolError, Refusal, Refused, StepError, StepsRefused, ZunftError

_STEP_PREFIX = struct.Struct("<QfI")
_SAMPLE_PREFIX = struct.Struct("<QII")
_KEY_FRAME, _RAW = 1, 2
_ENDS = {
    "terminated": lambda reason: "terminated",
    "truncated": lambda reason: {"truncated": {"limit": reason or "step-limit"}},
    "aborted": lambda reason: {"aborted": {"reason": reason or "operator"}},
}


class Skill(NamedTuple):
    """An actor: the active release of a skill."""

    name: str


def skill(name: str) -> Skill:
    """The actor of a recording in which the active release of this skill acts."""
    return Skill(name)


class Action(NamedTuple):
    """What a skill would do now."""

    values: np.ndarray
    """f32, the embodiment's ``action``, flat."""
    version: int
    """Of the release that answered."""
    manifest: str
    """Digest of its signed envelope, hexadecimal."""


class Progress(NamedTuple):
    """How far a recording came."""

    steps_recorded: int
    """Steps that the agent has taken."""
    steps_on_disk: int
    """Steps that survive a power cut."""


class Ended(NamedTuple):
    """What a recording became."""

    recording: str
    episode: str
    """Id of the episode, hexadecimal."""
    steps: int
    images_dropped: int = 0
    """Raw images that came faster than the agent could encode them, and are not in it."""


class Robot:
    """A connection to the agent on this robot. Not for several threads at once: give each its own."""

    def __init__(self, socket: Union[str, "os.PathLike[str]"], timeout: Optional[float] = None) -> None:
        """Connects. ``timeout`` bounds the seconds that a call waits for its answer; ``None`` waits as long as the
        agent lives. When the beginning or the end of a recording times out, connect again."""
        self._connection = wire.Connection(os.fspath(socket), timeout)
        self._subscribed = False

    def __enter__(self) -> Robot:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection. The agent keeps an open recording as truncated."""
        self._connection.close()

    def record(self, task: str, embodiment: Embodiment, actor: Union[str, Skill] = "script") -> Recording:
        """Opens a recording. ``actor`` is ``"script"``, ``"human"`` or ``skill(name)``.

        Use it in a ``with`` statement: leaving by an exception ends the recording as aborted (``fault``, and
        ``operator`` for Ctrl-C); leaving without ``end`` as truncated, with unknown outcome.
        """
        who: Any = {"skill": actor.name} if isinstance(actor, Skill) else actor
        body = wire.write_json({"task": task, "embodiment": embodiment.as_json(), "actor": who})
        answer = self._connection.call("BEGIN", wire.BEGIN, wire.BEGUN, body, must_answer=True)
        begun = wire.read_json("BEGUN", answer)
        self._connection.take_refusals()
        return Recording(self, task, embodiment, actor, begun)

    def act(self, skill: str, task: str, observation: Any, *, first: bool = False) -> Action:
        """What the active release of ``skill`` would do; ``first`` at an episode's first step.

        ``observation`` is the observation features in the embodiment's order, concatenated
        (``Embodiment.observation`` makes it of a mapping).
        """
        values = np.asarray(observation, dtype="<f4")
        names = b"".join(struct.pack("<H", len(name)) + name for name in (skill.encode(), task.encode()))
        body = names + struct.pack("<II", 1 if first else 0, values.size) + values.tobytes()
        answer = self._connection.call("ACT", wire.ACT, wire.ACTION, body)
        if len(answer) < 40 or len(answer) != 40 + 4 * struct.unpack_from("<I", answer, 36)[0]:
            raise ProtocolError("the agent's ACTION cannot be read: its length is wrong")
        version = struct.unpack_from("<I", answer)[0]
        return Action(np.frombuffer(answer, "<f4", offset=40).copy(), version, answer[4:36].hex())

    def status(self) -> Dict[str, Any]:
        """The agent's state, as docs/local-socket.md has it."""
        return wire.read_json("STATUS_IS", self._connection.call("STATUS", wire.STATUS, wire.STATUS_IS))

    def subscribe(self) -> None:
        """Asks for events from now on. ``poll_event`` and ``events`` do so by themselves."""
        if not self._subscribed:
            self._connection.call("SUBSCRIBE", wire.SUBSCRIBE, wire.SUBSCRIBED)
            self._subscribed = True

    def poll_event(self, timeout: Optional[float] = 0.0) -> Optional[Dict[str, Any]]:
        """The next event, after waiting for it for at most ``timeout`` seconds."""
        self.subscribe()
        return self._connection.take_event(timeout)

    def events(self) -> Iterator[Dict[str, Any]]:
        """Events as they happen, until the agent goes away."""
        while True:
            event = self.poll_event(None)
            if event is not None:
                yield event

    def echo(self, content: bytes) -> bytes:
        """The same bytes again, by the way that ``act`` takes: the yardstick for its latency."""
        return self._connection.call("ECHO", wire.ECHO, wire.ECHOED, bytes(content))

    def take_refusals(self) -> List[Refusal]:
        """The refused steps that are known by now and were not told yet, the first 64 of them."""
        self._connection.drain()
        return self._connection.take_refusals()[1]


class Recording:
    """An open recording; `Robot.record` makes it."""

    def __init__(
        self, robot: Robot, task: str, embodiment: Embodiment, actor: Union[str, Skill], begun: Dict[str, Any]
    ) -> None:
        self.id: str = str(begun.get("recording"))
        """Minted by the agent; there is never more than one episode for it."""
        self.release: Optional[str] = begun.get("release")
        """The release that acts, where a skill does."""
        self.embodiment = embodiment
        self.task = task
        self.steps = 0
        """Steps sent."""
        self.ended: Optional[Ended] = None
        """What it became, once it ended."""
        self._robot = robot
        self._connection = robot._connection
        self._actor = actor
        self._last_ns = -1
        self._samples: Dict[int, Tuple[int, int]] = {}
        """Of each stream by its feature's place: samples sent, and the time of the last."""
        streams = enumerate(embodiment.features)
        robot._connection.streams = {place: feature.name for place, feature in streams if feature.is_stream}
        self._acted = False
        self._open = True

    def step(
        self,
        values: Mapping[str, Any],
        reward: Optional[float] = None,
        monotonic_ns: Optional[int] = None,
        intervention: bool = False,
    ) -> None:
        """Records one step: every feature by name, and the reward that followed.

        ``monotonic_ns`` is when the observation was taken (``time.monotonic_ns``); left out, it is now.
        ``intervention``: a person had taken over.
        """
        self._check_open()
        features = self.embodiment.pack(values)
        if monotonic_ns is None:
            monotonic_ns = max(time.monotonic_ns(), self._last_ns + 1)
        prefix = _STEP_PREFIX.pack(monotonic_ns, float("nan") if reward is None else reward, 1 if intervention else 0)
        self._connection.send_step(self.steps, prefix + features)
        self._last_ns = monotonic_ns
        self.steps += 1

    def sample(self, stream: str, values: Any, monotonic_ns: Optional[int] = None) -> None:
        """Records one sample of a feature with a rate of its own. It is on its way when this returns, like a step.

        ``monotonic_ns`` is when it was taken; left out, it is now.
        """
        self._check_open()
        place, feature = self.embodiment.stream(stream)
        if feature.encoding is not None:
            raise StepError(f"{stream!r} is a camera; record its images with `image`")
        self._send_sample(place, 0, feature.array(values).tobytes(), monotonic_ns)

    def image(
        self, camera: str, image: Any, monotonic_ns: Optional[int] = None, *, key_frame: bool = True
    ) -> None:
        """Records one image of a camera that is a stream of its own (``zunft.camera`` makes such features).

        ``image`` is what the camera gave: a whole JPEG, or an access unit of H.264 (``key_frame`` says whether it can
        be decoded without those before it). An array of ``uint8`` is raw pixels, ``[height, width, channels]``, which
        the agent turns into JPEG in the background; when they come faster than it can, the oldest are left out, and
        ``Ended.images_dropped`` tells how many.
        """
        self._check_open()
        name = camera if camera.startswith(IMAGES_PREFIX) else f"{IMAGES_PREFIX}{camera}"
        place, feature = self.embodiment.stream(name)
        if isinstance(image, np.ndarray):
            if feature.encoding != "jpeg":
                raise StepError(f"{name!r} stores {feature.encoding}; raw images become JPEG: give encoded bytes")
            pixels = np.ascontiguousarray(feature.array(image))
            self._send_sample(place, _KEY_FRAME | _RAW, memoryview(pixels).cast("B"), monotonic_ns)
        else:
            flags = _KEY_FRAME if key_frame or feature.encoding == "jpeg" else 0
            self._send_sample(place, flags, memoryview(image).cast("B"), monotonic_ns)

    def _send_sample(self, place: int, flags: int, content: Any, monotonic_ns: Optional[int]) -> None:
        sent, last_ns = self._samples.get(place, (0, -1))
        if monotonic_ns is None:
            monotonic_ns = max(time.monotonic_ns(), last_ns + 1)
        self._connection.send_sample(place, sent, _SAMPLE_PREFIX.pack(monotonic_ns, place, flags), content)
        self._samples[place] = (sent + 1, monotonic_ns)

    def act(self, observation: Any) -> Action:
        """What the recording's skill would do; the observation by feature name, or concatenated."""
        if not isinstance(self._actor, Skill):
            raise StepError(f"actor {self._actor!r} is no skill; record with actor=zunft.skill(NAME)")
        if isinstance(observation, Mapping):
            observation = self.embodiment.observation(observation)
        action = self._robot.act(self._actor.name, self.task, observation, first=not self._acted)
        self._acted = True
        return action

    def progress(self) -> Progress:
        """How much the agent has, and how much would survive a power cut.

        Raises `StepsRefused`, once, when steps were refused since this was last asked.
        """
        answer = self._connection.call("PROGRESS", wire.PROGRESS, wire.PROGRESS_IS)
        if len(answer) != 16:
            raise ProtocolError("the agent's PROGRESS_IS cannot be read: its length is wrong")
        self._raise_refusals(None)
        return Progress(*struct.unpack("<QQ", answer))

    def end(self, outcome: str = "unknown", end: str = "terminated", reason: Optional[str] = None) -> Ended:
        """Ends the recording, and returns when the whole episode is on disk.

        ``outcome`` is ``"success"``, ``"failure"`` or ``"unknown"``; ``end`` is ``"terminated"``, ``"truncated"`` or
        ``"aborted"``, whose ``reason`` is ``"operator"``, ``"safety"`` or ``"fault"``.
        Raises `StepsRefused`, with the episode in it, when steps are missing that were not told before.
        """
        self._check_open()
        if end not in _ENDS:
            raise ValueError(f"a recording cannot end as {end!r}; use one of {', '.join(_ENDS)}")
        if outcome not in ("success", "failure", "unknown"):
            raise ValueError(f"an outcome cannot be {outcome!r}; use success, failure or unknown")
        self._open = False
        body = wire.write_json({"outcome": outcome, "end": _ENDS[end](reason)})
        try:
            answer = self._connection.call("END", wire.END, wire.ENDED, body, must_answer=True)
        except Refused:
            # The step that could not be kept is the cause; that the recording is gone only follows.
            self._raise_refusals(None)
            raise
        ended = wire.read_json("ENDED", answer)
        steps, dropped = int(ended.get("steps", 0)), int(ended.get("images_dropped", 0))
        self.ended = Ended(str(ended.get("recording")), str(ended.get("episode")), steps, dropped)
        self._raise_refusals(self.ended)
        return self.ended

    def __enter__(self) -> Recording:
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        if not self._open or self._connection.failed:
            return
        if kind is None:
            self.end("unknown", "truncated")
            return
        try:
            self.end("unknown", "aborted", "operator" if issubclass(kind, KeyboardInterrupt) else "fault")
        except ZunftError:
            pass  # The exception that is under way tells more.

    def _check_open(self) -> None:
        if not self._open:
            raise StepError("the recording has ended; begin another with Robot.record")

    def _raise_refusals(self, ended: Optional[Ended]) -> None:
        count, refusals = self._connection.take_refusals()
        if refusals:
            raise StepsRefused(count, refusals, ended)
