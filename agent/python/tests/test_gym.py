"""`RobotEnv` over a small environment, with Gymnasium's own spaces where it is installed and look-alikes where not."""

from __future__ import annotations

import struct
import unittest
from types import SimpleNamespace
from typing import Any, List

import numpy as np

import zunft
from zunft import spaces
from zunft.gym import RobotEnv

from .scripted_agent import ScriptedAgent, frame

try:
    from gymnasium import Env
    from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple
except ImportError:
    Env = object

    def Box(low: Any, high: Any, shape: Any, dtype: Any = np.float32) -> Any:
        return SimpleNamespace(low=np.full(shape, low, dtype), high=np.full(shape, high, dtype), shape=shape, dtype=dtype)

    def Discrete(n: int, start: int = 0) -> Any:
        return SimpleNamespace(n=n, start=start, shape=(), dtype=np.dtype(np.int64))

    def MultiDiscrete(nvec: List[int]) -> Any:
        return SimpleNamespace(nvec=np.array(nvec), shape=(len(nvec),), dtype=np.dtype(np.int64))

    class MultiBinary:
        def __init__(self, n: int) -> None:
            self.n, self.shape, self.dtype = n, (n,), np.dtype(np.int8)

    def Dict(entries: Any) -> Any:
        return SimpleNamespace(spaces=entries, shape=None)

    def Tuple(items: Any) -> Any:
        return SimpleNamespace(spaces=tuple(items), shape=None)


class Walk(Env):
    """Walks along a line; done at 3, over after 5 steps. Writes each observation into the same array."""

    metadata = {"render_fps": 10}

    def __init__(self, tells: bool = True, breaks_at: int = -1) -> None:
        self.observation_space = Box(-np.inf, np.inf, (1,))
        self.action_space = Box(-1.0, 1.0, (1,))
        self._at, self._steps, self._tells, self._breaks_at = np.zeros(1, np.float32), 0, tells, breaks_at
        self.closed = False

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self._at[:] = 0.0
        self._steps = 0
        return self._at, {}

    def step(self, action: Any) -> Any:
        if self._steps == self._breaks_at:
            raise RuntimeError("the motor is hot")
        self._at += action
        self._steps += 1
        info = {"success": float(self._at[0] == 3.0)} if self._tells else {}
        return self._at, float(self._at[0]), False, self._steps == 5, info

    def close(self) -> None:
        self.closed = True


class RecordedAgent:
    """A script that takes any number of episodes of a one-value observation and action, and notes them."""

    def __init__(self) -> None:
        self.begun: List[Any] = []
        self.steps: List[List[Any]] = []
        self.ended: List[Any] = []

    def __call__(self, agent: ScriptedAgent) -> None:
        while True:
            header = agent.connection.recv(16)
            if not header:
                return
            kind, _, request, length, _ = struct.unpack("<HHIII", header)
            body = agent.read(length) if length else b""
            if kind == 1:
                self.begun.append(body)
                self.steps.append([])
                agent.send_json(129, request, {"recording": "01" * 16, "step_bytes": 8})
            elif kind == 2:
                self.steps[-1].append(struct.unpack("<QfIff", body))
            elif kind == 3 and not self.steps[-1]:
                agent.send_json(255, request, {"code": "no-steps", "message": "nothing was recorded"})
            elif kind == 3:
                self.ended.append(body)
                steps = len(self.steps[-1])
                agent.send_json(131, request, {"recording": "01" * 16, "episode": "ab" * 32, "steps": steps})
            else:
                values = struct.unpack_from("<f", body, length - 4)
                action = struct.pack("<If", 1, 2.0 if values[0] == 0.0 else -0.5)
                agent.send(frame(133, request, b"\x01\0\0\0" + bytes(32) + action))


class Episodes(unittest.TestCase):
    def test_step_holds_what_was_seen_before_the_action_and_the_reward_after_it(self) -> None:
        played = RecordedAgent()
        with ScriptedAgent(played) as agent, zunft.Robot(agent.path, timeout=30) as robot:
            env = RobotEnv(Walk(), robot, "walk", name="walker")
            env.reset(seed=1)
            for _ in range(5):
                *_, truncated, _ = env.step(np.ones(1))
            self.assertTrue(truncated)
            self.assertEqual(env.ended.steps, 5)
            with self.assertRaises(RuntimeError):
                env.step(np.ones(1))
        self.assertEqual(
            played.begun[0],
            b'{"task":"walk","embodiment":{"name":"walker","rate_hz":10.0,"features":['
            b'{"name":"observation.state","dtype":"f32","shape":[1],"names":[],"units":[],"min":[],"max":[]},'
            b'{"name":"action","dtype":"f32","shape":[1],"names":[],"units":[],"min":[-1.0],"max":[1.0]}]},'
            b'"actor":"script"}',
        )
        self.assertEqual([step[1:] for step in played.steps[0]], [(k + 1.0, 0, float(k), 1.0) for k in range(5)])
        self.assertEqual(played.ended, [b'{"outcome":"success","end":{"truncated":{"limit":"step-limit"}}}'])

    def test_outcome_is_what_info_said_at_any_step(self) -> None:
        for env, actions, outcome in [
            (Walk(), [0.0] * 5, b'"failure"'),
            (Walk(), [1.0, 1.0, 1.0, -1.0, -1.0], b'"success"'),
            (Walk(tells=False), [1.0] * 5, b'"unknown"'),
        ]:
            played = RecordedAgent()
            with ScriptedAgent(played) as agent, zunft.Robot(agent.path, timeout=30) as robot:
                wrapped = RobotEnv(env, robot, "walk")
                wrapped.reset()
                for action in actions:
                    wrapped.step(np.array([action]))
            self.assertIn(outcome, played.ended[0])

    def test_episode_can_be_over_at_its_first_success(self) -> None:
        played = RecordedAgent()
        with ScriptedAgent(played) as agent, zunft.Robot(agent.path, timeout=30) as robot:
            env = RobotEnv(Walk(), robot, "walk", end_on_success=True)
            env.reset()
            terminated = [env.step(np.ones(1))[2] for _ in range(3)]
        self.assertEqual(terminated, [False, False, True])
        self.assertEqual(played.ended, [b'{"outcome":"success","end":"terminated"}'])

    def test_reset_and_close_cut_an_episode_short_and_drop_an_empty_one(self) -> None:
        played = RecordedAgent()
        inner = Walk()
        with ScriptedAgent(played) as agent, zunft.Robot(agent.path, timeout=30) as robot:
            env = RobotEnv(inner, robot, "walk")
            env.reset()
            env.step(np.zeros(1))
            env.reset()
            env.reset()
            env.step(np.zeros(1))
            env.close()
        self.assertTrue(inner.closed)
        self.assertEqual([len(steps) for steps in played.steps], [1, 0, 1])
        self.assertEqual(played.ended, [b'{"outcome":"failure","end":{"truncated":{"limit":"step-limit"}}}'] * 2)

    def test_environment_that_breaks_aborts_its_episode(self) -> None:
        played = RecordedAgent()
        with ScriptedAgent(played) as agent, zunft.Robot(agent.path, timeout=30) as robot:
            env = RobotEnv(Walk(breaks_at=1), robot, "walk")
            env.reset()
            env.step(np.zeros(1))
            with self.assertRaisesRegex(RuntimeError, "the motor is hot"):
                env.step(np.zeros(1))
        self.assertEqual(played.ended, [b'{"outcome":"unknown","end":{"aborted":{"reason":"fault"}}}'])

    def test_skill_acts_within_the_action_space(self) -> None:
        played = RecordedAgent()
        with ScriptedAgent(played) as agent, zunft.Robot(agent.path, timeout=30) as robot:
            env = RobotEnv(Walk(), robot, "walk", actor=zunft.skill("walk"))
            env.reset()
            actions = []
            for _ in range(2):
                actions.append(float(env.act()[0]))
                env.step(np.array([actions[-1]]))
            env.end("terminated", "success")
        self.assertEqual(actions, [1.0, -0.5])
        self.assertIn(b'"actor":{"skill":"walk"}', played.begun[0])
        self.assertEqual([step[4] for step in played.steps[0]], [1.0, -0.5])

    def test_environment_without_a_rate_asks_for_one(self) -> None:
        env = Walk()
        env.metadata = {}
        with self.assertRaisesRegex(ValueError, "give rate_hz"):
            RobotEnv(env, None, "walk")
        self.assertEqual(RobotEnv(env, None, "walk", rate_hz=5).embodiment.rate_hz, 5.0)


class Spaces(unittest.TestCase):
    def test_dictionary_observations_become_named_features(self) -> None:
        space = Dict(
            {
                "state": Box(-1.0, 1.0, (2, 2)),
                "gripper": Dict({"open": Discrete(2)}),
                "top": Box(0, 255, (4, 3, 3), np.uint8),
            }
        )
        found = spaces.observation_features(space)
        self.assertEqual(
            sorted((feature.name, feature.dtype, feature.dims) for feature, _ in found),
            [
                ("observation.gripper.open", "f32", (2,)),
                ("observation.images.top", "u8", (4, 3, 3)),
                ("observation.state", "f32", (4,)),
            ],
        )
        observation = {
            "state": np.arange(4.0).reshape(2, 2),
            "gripper": {"open": 1},
            "top": np.full((4, 3, 3), 7, np.uint8),
        }
        values = {feature.name: read(observation) for feature, read in found}
        body = zunft.Embodiment("arm", 10, [feature for feature, _ in found])
        np.testing.assert_array_equal(values["observation.state"], [0, 1, 2, 3])
        np.testing.assert_array_equal(values["observation.gripper.open"], [0, 1])
        self.assertEqual(len(body.pack(values)), 4 * 4 + 2 * 4 + 36)

    def test_actions_survive_flattening(self) -> None:
        for space, value, flat in [
            (Box(-1.0, 1.0, (2,)), np.array([0.5, -1.0], np.float32), [0.5, -1.0]),
            (Box(0, 9, (2,), np.int64), np.array([3, 9]), [3, 9]),
            (Discrete(3), 2, [0, 0, 1]),
            (Discrete(2, start=-1), -1, [1, 0]),
            (MultiDiscrete([2, 3]), np.array([1, 0]), [0, 1, 1, 0, 0]),
            (MultiBinary(3), np.array([1, 0, 1]), [1, 0, 1]),
            (Tuple([Discrete(2), Box(-1.0, 1.0, (1,))]), (1, np.array([0.5], np.float32)), [0, 1, 0.5]),
        ]:
            with self.subTest(space=space):
                self.assertEqual(spaces.size(space), len(flat))
                np.testing.assert_array_equal(spaces.flatten(space, value), flat)
                back = spaces.unflatten(space, np.array(flat))
                for found, expected in zip(np.ravel(np.array(back, object)), np.ravel(np.array(value, object))):
                    self.assertEqual(found, expected)

    def test_what_a_policy_says_is_brought_to_the_nearest_action(self) -> None:
        self.assertEqual(spaces.unflatten(Discrete(3), np.array([0.2, 0.7, 0.6])), 1)
        np.testing.assert_array_equal(spaces.unflatten(Box(-1.0, 1.0, (2,)), np.array([-3.0, 0.25])), [-1.0, 0.25])
        np.testing.assert_array_equal(spaces.unflatten(MultiBinary(2), np.array([0.4, 7.0])), [0, 1])
        with self.assertRaises(ValueError):
            spaces.unflatten(Discrete(3), np.zeros(4))

    def test_space_without_features_is_an_error_that_names_it(self) -> None:
        with self.assertRaisesRegex(spaces.SpaceError, "SimpleNamespace has no features"):
            spaces.observation_features(SimpleNamespace(shape=None))


if __name__ == "__main__":
    unittest.main()
