"""Record a robot's experience and act with its skills, through the Zunft agent's local socket.

It knows the socket's protocol (docs/local-socket.md) and nothing of networks, hubs or neural networks.
"""

from .embodiment import Embodiment, Feature, camera
from .errors import (
    ConnectError,
    ConnectionLost,
    ProtocolError,
    Refusal,
    Refused,
    StepError,
    StepsRefused,
    TimedOut,
    ZunftError,
)
from .robot import Action, Ended, Progress, Recording, Robot, Skill, skill

__all__ = [
    "Action",
    "ConnectError",
    "ConnectionLost",
    "Embodiment",
    "Ended",
    "Feature",
    "Progress",
    "ProtocolError",
    "Recording",
    "Refusal",
    "Refused",
    "Robot",
    "Skill",
    "StepError",
    "StepsRefused",
    "TimedOut",
    "ZunftError",
    "camera",
    "skill",
]
__version__ = "0.1.0"
