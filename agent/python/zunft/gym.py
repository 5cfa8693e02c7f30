"""Runs any Gymnasium environment as a robot: its episodes are recorded, and a skill can act in it.

Gymnasium itself is only needed to make environments: the wrapper is a `gymnasium.Wrapper` where it is installed.
"""

from __future__ import annotations

import time
from typing import Any, Dict, Optional, Tuple, Union

import numpy as np

from . import spaces
from .embodiment import Embodiment
from .errors import Refused
from .robot import Ended, Recording, Robot, Skill

try:
    from gymnasium import Wrapper
except ImportError:  # The spaces and the five methods of an environment are enough.

    class Wrapper:  # type: ignore[no-redef]
        """What is left of `gymnasium.Wrapper` without Gymnasium."""

        def __init__(self, env: Any) -> None:
            self.env = env

        def __getattr__(self, name: str) -> Any:
            return getattr(self.env, name)


SUCCESS_KEYS = ("success", "is_success")
"""Entries of ``info`` that say whether the task is done."""


class RobotEnv(Wrapper):
    """An environment whose every episode is recorded.

    A step is what was observed, the action taken then, and the reward that followed. An episode is a success when
    ``info["success"]`` or ``info["is_success"]`` was true at any of its steps, a failure when it never was, and of
    unknown outcome when ``info`` does not say. It ends as the environment says; one that is cut short by ``reset`` or
    ``close`` is truncated, and one that an exception ends is aborted.
    """

    def __init__(
        self,
        env: Any,
        robot: Robot,
        task: str,
        *,
        actor: Union[str, Skill] = "script",
        name: Optional[str] = None,
        rate_hz: Optional[float] = None,
        end_on_success: bool = False,
    ) -> None:
        """``actor`` is who chooses the actions: ``"script"``, ``"human"`` or ``zunft.skill(NAME)``, whose `act` does.

        ``name`` of the embodiment is the environment's id, and ``rate_hz`` its ``render_fps``, where left out.
        With ``end_on_success`` an episode is over at its first success, which `step` returns as terminated.
        """
        super().__init__(env)
        if getattr(env, "num_envs", 1) != 1:
            raise TypeError("a vector environment is several robots; wrap each of its environments, with its own agent")
        self._robot = robot
        self._task = task
        self._actor = actor
        self._end_on_success = end_on_success
        self._features = spaces.observation_features(env.observation_space)
        features = [feature for feature, _ in self._features] + [spaces.action_feature(env.action_space)]
        self.embodiment = Embodiment(name or _name(env), rate_hz or _rate_hz(env), features)
        self.ended: Optional[Ended] = None
        """What the last episode became."""
        self._recording: Optional[Recording] = None
        self._observation: Dict[str, Any] = {}
        self._observed_ns = -1
        self._success: Optional[bool] = None

    @property
    def recording(self) -> Optional[Recording]:
        """The open recording."""
        return self._recording

    def reset(self, **kwargs: Any) -> Tuple[Any, Dict[str, Any]]:
        """Starts an episode, and its recording."""
        self._cut_short()
        observation, info = self.env.reset(**kwargs)
        self._success = None
        self._recording = self._robot.record(self._task, self.embodiment, self._actor)
        self._observe(observation)
        return observation, info

    def act(self) -> Any:
        """The action that the active release of the actor's skill takes now, for `step`."""
        values = self._open_recording().act(self._observation).values
        return spaces.unflatten(self.env.action_space, values)

    def step(self, action: Any) -> Tuple[Any, Any, bool, bool, Dict[str, Any]]:
        """Takes an action and records the step; ends the recording with the episode."""
        recording = self._open_recording()
        try:
            observation, reward, terminated, truncated, info = self.env.step(action)
            values = {**self._observation, spaces.ACTION: spaces.flatten(self.env.action_space, action)}
            recording.step(values, float(reward), self._observed_ns)
            self._note_success(info)
            self._observe(observation)
        except BaseException as error:
            self._recording = None
            recording.__exit__(type(error), error, error.__traceback__)
            raise
        terminated = bool(terminated) or (self._end_on_success and self._success is True)
        if terminated or truncated:
            self.end("terminated" if terminated else "truncated")
        return observation, reward, terminated, bool(truncated), info

    def end(self, end: str = "truncated", outcome: Optional[str] = None) -> Ended:
        """Ends the episode here; the next call is `reset`. ``outcome`` is what ``info`` said, where left out."""
        recording, self._recording = self._open_recording(), None
        outcomes = {None: "unknown", True: "success", False: "failure"}
        self.ended = recording.end(outcome or outcomes[self._success], end)
        return self.ended

    def close(self) -> None:
        """Ends an episode that is under way, and closes the environment; the robot's connection stays open."""
        try:
            self._cut_short()
        finally:
            self.env.close()

    def _cut_short(self) -> None:
        if self._recording is None:
            return
        try:
            self.end("truncated")
        except Refused as error:
            # Reset twice without a step between: there is nothing to keep.
            if error.code != "no-steps":
                raise

    def _open_recording(self) -> Recording:
        if self._recording is None:
            raise RuntimeError("no episode is under way; call reset first")
        return self._recording

    def _observe(self, observation: Any) -> None:
        # Copied now: many environments write the next observation into the same array.
        self._observation = {feature.name: np.array(read(observation)) for feature, read in self._features}
        self._observed_ns = max(time.monotonic_ns(), self._observed_ns + 1)

    def _note_success(self, info: Dict[str, Any]) -> None:
        for key in SUCCESS_KEYS:
            if key in info:
                self._success = bool(self._success) or bool(np.any(info[key]))


def _name(env: Any) -> str:
    spec = getattr(env, "spec", None)
    return str(getattr(spec, "id", None) or type(getattr(env, "unwrapped", env)).__name__)


def _rate_hz(env: Any) -> float:
    rate_hz = (getattr(env, "metadata", None) or {}).get("render_fps")
    if not rate_hz:
        raise ValueError("the environment does not say how fast it runs; give rate_hz, its steps in a second")
    return float(rate_hz)
