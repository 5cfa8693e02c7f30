"""What can go wrong between a control program and its agent."""

from __future__ import annotations

from typing import TYPE_CHECKING, List, NamedTuple, Optional

if TYPE_CHECKING:
    from .robot import Ended


class ZunftError(Exception):
    """Every error of this package."""


class ConnectError(ZunftError, ConnectionError):
    """There is no connection to the agent."""


class ConnectionLost(ZunftError, ConnectionError):
    """The connection failed. An open recording is kept by the agent, as truncated."""


class ProtocolError(ZunftError):
    """The agent sent something that cannot be read."""


class TimedOut(ZunftError, TimeoutError):
    """The agent did not answer in time."""


class StepError(ZunftError, ValueError):
    """A step, sample or observation does not fit the embodiment; it was not sent."""


class Refused(ZunftError):
    """The agent said no: ``code`` is for programs, ``message`` for people (docs/local-socket.md has the codes)."""

    def __init__(self, call: str, code: str, message: str) -> None:
        super().__init__(f"{call} was refused: {message} ({code})")
        self.code = code
        self.message = message


class Refusal(NamedTuple):
    """A step or sample that the agent did not keep."""

    step: int
    """Which one, counting the recording's steps, or the stream's samples (modulo 2^22), from 0 as they were sent."""
    code: str
    message: str
    stream: Optional[str] = None
    """The stream, for a sample of one."""


class StepsRefused(ZunftError):
    """The recording lacks steps that were sent. It goes on, or ended as ``ended`` says."""

    def __init__(self, count: int, refusals: List[Refusal], ended: Optional[Ended] = None) -> None:
        first = refusals[0]
        what = "steps" if first.stream is None else "steps or samples"
        which = first.stream or "step"
        super().__init__(f"{count} {what} were refused; first {which} {first.step}: {first.message} ({first.code})")
        self.count = count
        self.refusals = refusals
        self.ended = ended
