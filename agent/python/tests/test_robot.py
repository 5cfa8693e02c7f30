"""`Robot` and `Recording` against a scripted agent."""

from __future__ import annotations

import struct
import unittest

import numpy as np

import zunft

from .scripted_agent import ScriptedAgent, frame

RECORDING = "0102030405060708090a0b0c0d0e0f10"
EPISODE = "ab" * 32
ARM = zunft.Embodiment("arm", 20, [zunft.Feature("observation.state", 2), zunft.Feature("action", 1)])
BEGIN_JSON = (
    b'{"task":"push","embodiment":{"name":"arm","rate_hz":20.0,"features":['
    b'{"name":"observation.state","dtype":"f32","shape":[2],"names":[],"units":[],"min":[],"max":[]},'
    b'{"name":"action","dtype":"f32","shape":[1],"names":[],"units":[],"min":[],"max":[]}]},"actor":"script"}'
)
STEP_BYTES = 16 + 16 + 12
VALUES = {"observation.state": [1.0, -2.0], "action": np.array([0.5])}


def begin(agent: ScriptedAgent, **more: object) -> dict:
    body = agent.expect_json(1, 1)
    agent.send_json(129, 1, {"recording": RECORDING, "step_bytes": 12, **more})
    return body


def end(agent: ScriptedAgent, request: int, steps: int = 1) -> dict:
    body = agent.expect_json(3, request)
    agent.send_json(131, request, {"recording": RECORDING, "episode": EPISODE, "steps": steps})
    return body


class Recording(unittest.TestCase):
    def test_episode_is_recorded_with_the_documented_bytes(self) -> None:
        def script(agent: ScriptedAgent) -> None:
            agent.expect(frame(1, 1, BEGIN_JSON))
            agent.send_json(129, 1, {"recording": RECORDING, "step_bytes": 12})
            agent.expect(
                b"\x02\0\0\0"  # STEP, flags
                b"\0\0\0\x80"  # request: the first step
                b"\x1c\0\0\0"  # length
                b"\0\0\0\0"  # reserved
                b"\x02\x01\0\0\0\0\0\0"  # monotonic_ns
                b"\0\0\x80\x3f"  # reward 1.0
                b"\x01\0\0\0"  # a person had taken over
                b"\0\0\x80\x3f"  # observation.state: 1.0
                b"\0\0\0\xc0"  # -2.0
                b"\0\0\0\x3f"  # action: 0.5
            )
            agent.expect(
                b"\x02\0\0\0\x01\0\0\x80\x1c\0\0\0\0\0\0\0"  # the second step
                b"\x03\x01\0\0\0\0\0\0"  # monotonic_ns
                b"\0\0\xc0\x7f"  # no reward
                b"\0\0\0\0"  # no flags
                b"\0\0\x80\x3f\0\0\0\xc0\0\0\0\x3f"
            )
            agent.expect(frame(4, 2))
            agent.send(frame(132, 2, struct.pack("<QQ", 2, 1)))
            agent.expect(frame(3, 3, b'{"outcome":"success","end":{"truncated":{"limit":"step-limit"}}}'))
            agent.send_json(131, 3, {"recording": RECORDING, "episode": EPISODE, "steps": 2})

        with ScriptedAgent(script) as agent, zunft.Robot(agent.path, timeout=30) as robot:
            with robot.record("push", ARM) as recording:
                self.assertEqual(recording.id, RECORDING)
                recording.step(VALUES, reward=1.0, monotonic_ns=258, intervention=True)
                recording.step(VALUES, monotonic_ns=259)
                self.assertEqual(recording.progress(), zunft.Progress(2, 1))
                self.assertEqual(recording.end("success", end="truncated"), zunft.Ended(RECORDING, EPISODE, 2))

    def test_samples_and_images_are_sent_with_the_documented_bytes(self) -> None:
        body = zunft.Embodiment(
            "arm",
            20,
            [
                zunft.camera("top", 1, 2, rate_hz=30),
                zunft.Feature("action", 1),
                zunft.camera("side", 480, 640, rate_hz=30, encoding="h264"),
                zunft.Feature("observation.force", 2, rate_hz=500),
            ],
        )

        def sample(request: int, time_ns: int, feature: int, flags: int, content: bytes) -> bytes:
            return frame(9, request, struct.pack("<QII", time_ns, feature, flags) + content)

        def script(agent: ScriptedAgent) -> None:
            features = begin(agent)["embodiment"]["features"]
            self.assertEqual((features[0]["encoding"], features[0]["rate_hz"]), ("jpeg", 30.0))
            self.assertEqual((features[0]["shape"], features[3]["rate_hz"]), ([1, 2, 3], 500.0))
            self.assertNotIn("rate_hz", features[1])
            agent.expect(frame(2, 0x80000000, struct.pack("<QfIf", 1, 0.5, 0, 2.0)))
            agent.expect(sample(0xC0000000, 1, 0, 1, b"\xff\xd8"))
            agent.expect(sample(0xC0000001, 2, 0, 3, b"\x01\x02\x03\x04\x05\x06"))
            agent.expect(sample(0xC0800000, 2, 2, 0, b"\x07"))
            agent.expect(sample(0xC0800001, 3, 2, 1, b"\x08\x09"))
            agent.expect(sample(0xC0C00000, 2, 3, 0, b"\0\0\x80\x3f\0\0\0\x40"))
            agent.send_json(255, 0xC0800001, {"code": "time-not-increasing", "message": "too early"})
            agent.expect(frame(4, 2))
            agent.send(frame(132, 2, struct.pack("<QQ", 1, 1)))
            agent.expect_json(3, 3)
            agent.send_json(131, 3, {"recording": RECORDING, "episode": EPISODE, "steps": 1, "images_dropped": 4})

        with ScriptedAgent(script) as agent, zunft.Robot(agent.path, timeout=30) as robot:
            with robot.record("push", body) as recording:
                recording.step({"action": 2.0}, reward=0.5, monotonic_ns=1)
                recording.image("top", b"\xff\xd8", monotonic_ns=1)
                pixels = np.arange(1, 7, dtype=np.uint8).reshape(1, 2, 3)
                recording.image("observation.images.top", pixels, monotonic_ns=2)
                recording.image("side", bytearray(b"\x07"), monotonic_ns=2, key_frame=False)
                recording.image("side", b"\x08\x09", monotonic_ns=3)
                recording.sample("observation.force", [1.0, 2.0], monotonic_ns=2)
                for wrong, told in [
                    (lambda: recording.sample("action", 1.0), "no stream of its own in this embodiment; it has 'observation.im"),
                    (lambda: recording.sample("observation.images.top", b""), "record its images with `image`"),
                    (lambda: recording.image("top", np.zeros((2, 2, 3), np.uint8)), r"shape \[1, 2, 3\]"),
                    (lambda: recording.image("side", np.zeros((480, 640, 3), np.uint8)), "raw images become JPEG"),
                    (lambda: recording.step({"action": 1.0, "observation.force": [1, 2]}), "is a stream of its own"),
                ]:
                    with self.assertRaisesRegex(zunft.StepError, told):
                        wrong()
                with self.assertRaises(zunft.StepsRefused) as refused:
                    recording.progress()
                stream = "observation.images.side"
                expected = zunft.Refusal(1, "time-not-increasing", "too early", stream)
                self.assertEqual(refused.exception.refusals, [expected])
                self.assertIn(f"first {stream} 1: too early", str(refused.exception))
                self.assertEqual(recording.end("success").images_dropped, 4)

    def test_step_without_a_time_is_later_than_the_one_before(self) -> None:
        times = []

        def script(agent: ScriptedAgent) -> None:
            begin(agent)
            times.extend(struct.unpack_from("<Q", agent.read(STEP_BYTES), 16)[0] for _ in range(20))
            end(agent, 2, 20)

        with ScriptedAgent(script) as agent, zunft.Robot(agent.path, timeout=30) as robot:
            with robot.record("push", ARM) as recording:
                for _ in range(20):
                    recording.step(VALUES)
                recording.end()
        self.assertTrue(all(before < after for before, after in zip(times, times[1:])), times)

    def test_every_dtype_is_little_endian_and_row_major(self) -> None:
        body = zunft.Embodiment(
            "mixed",
            20,
            [
                zunft.Feature("observation.images.top", (1, 2, 1), "u8"),
                zunft.Feature("observation.count", 1, "i64"),
                zunft.Feature("observation.precise", 1, "f64"),
                zunft.Feature("action", (2, 2)),
            ],
        )
        values = {
            "observation.images.top": np.array([[[1], [255]]]),
            "observation.count": -2,
            "observation.precise": 1,
            "action": np.array([[1.0, 0.0], [0.0, 2.0]]).T,
        }
        self.assertEqual(
            body.pack(values),
            b"\x01\xff\xfe\xff\xff\xff\xff\xff\xff\xff\0\0\0\0\0\0\xf0\x3f\0\0\x80\x3f\0\0\0\0\0\0\0\0\0\0\0\x40",
        )

    def test_step_that_does_not_fit_the_embodiment_is_never_sent(self) -> None:
        def script(agent: ScriptedAgent) -> None:
            begin(agent)
            agent.expect_end()

        wrong = [
            ({"action": [0.0]}, "no value for feature 'observation.state'"),
            ({**VALUES, "reward": 1.0}, "no feature 'reward'; it has 'observation.state', 'action'"),
            ({**VALUES, "action": [0.0, 1.0]}, "'action' has shape [1]; the value has [2]"),
            ({**VALUES, "action": ["left"]}, "convert it first"),
        ]
        with ScriptedAgent(script) as agent, zunft.Robot(agent.path, timeout=30) as robot:
            recording = robot.record("push", ARM)
            for values, message in wrong:
                with self.assertRaises(zunft.StepError) as caught:
                    recording.step(values)
                self.assertIn(message, str(caught.exception))
            self.assertEqual(recording.steps, 0)
            robot.close()

    def test_exception_inside_with_ends_the_recording_as_aborted(self) -> None:
        for error, reason in [(ValueError, "fault"), (KeyboardInterrupt, "operator")]:
            ends = []

            def script(agent: ScriptedAgent) -> None:
                begin(agent)
                agent.read(STEP_BYTES)
                ends.append(end(agent, 2))

            with ScriptedAgent(script) as agent, zunft.Robot(agent.path, timeout=30) as robot:
                with self.assertRaises(error):
                    with robot.record("push", ARM) as recording:
                        recording.step(VALUES)
                        raise error
            self.assertEqual(ends, [{"outcome": "unknown", "end": {"aborted": {"reason": reason}}}])

    def test_leaving_with_without_an_end_says_that_nobody_knows(self) -> None:
        ends = []

        def script(agent: ScriptedAgent) -> None:
            begin(agent)
            agent.read(STEP_BYTES)
            ends.append(end(agent, 2))

        with ScriptedAgent(script) as agent, zunft.Robot(agent.path, timeout=30) as robot:
            with robot.record("push", ARM, actor="human") as recording:
                recording.step(VALUES)
            with self.assertRaises(zunft.StepError):
                recording.step(VALUES)
        self.assertEqual(ends, [{"outcome": "unknown", "end": {"truncated": {"limit": "step-limit"}}}])
        self.assertEqual(recording.ended, zunft.Ended(RECORDING, EPISODE, 1))

    def test_refused_steps_are_told_once_by_the_next_progress_or_end(self) -> None:
        def refuse(agent: ScriptedAgent, step: int) -> None:
            agent.read(STEP_BYTES)
            agent.send_json(255, 0x80000000 | step, {"code": "time-not-increasing", "message": "too early"})

        def script(agent: ScriptedAgent) -> None:
            begin(agent)
            agent.read(STEP_BYTES)
            refuse(agent, 1)
            for request in (2, 3):
                agent.expect(frame(4, request))
                agent.send(frame(132, request, bytes(16)))
            refuse(agent, 2)
            end(agent, 4)

        with ScriptedAgent(script) as agent, zunft.Robot(agent.path, timeout=30) as robot:
            recording = robot.record("push", ARM)
            recording.step(VALUES, monotonic_ns=5)
            recording.step(VALUES, monotonic_ns=5)
            with self.assertRaises(zunft.StepsRefused) as caught:
                recording.progress()
            self.assertEqual(
                str(caught.exception), "1 steps were refused; first step 1: too early (time-not-increasing)"
            )
            recording.progress()
            recording.step(VALUES, monotonic_ns=5)
            with self.assertRaises(zunft.StepsRefused) as caught:
                recording.end("failure")
            self.assertEqual(caught.exception.ended, zunft.Ended(RECORDING, EPISODE, 1))
            self.assertEqual(caught.exception.refusals[0].step, 2)

    def test_agent_that_refuses_every_step_of_a_long_recording_never_blocks_it(self) -> None:
        steps = 20_000

        def script(agent: ScriptedAgent) -> None:
            begin(agent)
            for step in range(steps):
                agent.read(STEP_BYTES)
                agent.send_json(255, 0x80000000 | step, {"code": "disk-error", "message": "the disk is gone"})
            agent.expect_json(3, 2)
            agent.send_json(255, 2, {"code": "not-recording", "message": "no recording is open"})

        with ScriptedAgent(script) as agent, zunft.Robot(agent.path, timeout=30) as robot:
            recording = robot.record("push", ARM)
            for at in range(steps):
                recording.step(VALUES, monotonic_ns=at)
            with self.assertRaises(zunft.StepsRefused) as caught:
                recording.end()
            self.assertEqual((caught.exception.count, caught.exception.refusals[0].code), (steps, "disk-error"))


class Asking(unittest.TestCase):
    def test_act_carries_the_observation_and_tells_which_release_answered(self) -> None:
        def script(agent: ScriptedAgent) -> None:
            agent.expect(
                b"\x05\0\0\0\x01\0\0\0\x19\0\0\0\0\0\0\0"  # ACT
                b"\x04\0push"  # skill
                b"\x01\0t"  # task
                b"\x01\0\0\0"  # first step
                b"\x02\0\0\0\0\0\x80\x3f\0\0\0\x40"  # two values
            )
            agent.send(frame(133, 1, b"\x07\0\0\0" + b"\x09" * 32 + b"\x01\0\0\0\0\0\0\x3f"))

        with ScriptedAgent(script) as agent, zunft.Robot(agent.path, timeout=30) as robot:
            action = robot.act("push", "t", [1, 2], first=True)
            self.assertEqual((action.version, action.manifest), (7, "09" * 32))
            np.testing.assert_array_equal(action.values, np.array([0.5], np.float32))

    def test_recording_of_a_skill_acts_from_named_observations(self) -> None:
        begun = []

        def script(agent: ScriptedAgent) -> None:
            begun.append(begin(agent, release="push@7")["actor"])
            for request, first in [(2, 1), (3, 0)]:
                act = b"\x04\0push\x04\0push" + struct.pack("<IIff", first, 2, 1.0, 2.0)
                agent.expect(frame(5, request, act))
                agent.send(frame(133, request, b"\x07\0\0\0" + bytes(32) + b"\x01\0\0\0\0\0\0\x3f"))
            agent.read(STEP_BYTES)
            end(agent, 4)

        with ScriptedAgent(script) as agent, zunft.Robot(agent.path, timeout=30) as robot:
            with robot.record("push", ARM, actor=zunft.skill("push")) as recording:
                self.assertEqual(recording.release, "push@7")
                seen = {"observation.state": [1.0, 2.0]}
                recording.act(seen)
                recording.step({**seen, "action": recording.act(seen).values})
        self.assertEqual(begun, [{"skill": "push"}])

    def test_events_arrive_between_answers(self) -> None:
        event = {"event": "release-changed", "skill": "push", "version": 8, "previous": 7}

        def script(agent: ScriptedAgent) -> None:
            agent.expect(frame(7, 1))
            agent.send(frame(135, 1))
            agent.expect(frame(6, 2))
            agent.send_json(192, 1, event)
            agent.send_json(134, 2, {"robot": "r1", "new": True})
            agent.expect(frame(8, 3, b"ping"))
            agent.send_json(192, 1, {**event, "version": 9})
            agent.send(frame(136, 3, b"ping"))
            agent.expect_end()

        with ScriptedAgent(script) as agent, zunft.Robot(agent.path, timeout=30) as robot:
            robot.subscribe()
            self.assertEqual(robot.status()["robot"], "r1")
            self.assertEqual(robot.echo(b"ping"), b"ping")
            self.assertEqual(robot.poll_event(), event)
            self.assertEqual(next(robot.events())["version"], 9)
            self.assertIsNone(robot.poll_event(0.001))
            robot.close()

    def test_late_answer_is_dropped_and_the_next_call_gets_its_own(self) -> None:
        def script(agent: ScriptedAgent) -> None:
            agent.expect(frame(8, 1, b"late"))
            agent.expect(frame(6, 2))
            agent.send(frame(136, 1, b"late"))
            agent.send_json(134, 2, {"robot": "r1"})

        with ScriptedAgent(script) as agent, zunft.Robot(agent.path, timeout=0.02) as robot:
            with self.assertRaises(zunft.TimedOut):
                robot.echo(b"late")
            robot._connection.timeout = 30
            self.assertEqual(robot.status(), {"robot": "r1"})

    def test_refused_calls_carry_the_agents_code_and_message(self) -> None:
        def script(agent: ScriptedAgent) -> None:
            agent.expect(frame(6, 1))
            agent.send_json(255, 1, {"code": "bad-request", "message": "not today"})
            agent.expect(frame(6, 2))
            agent.send_json(255, 0, {"code": "bad-frame", "message": "unknown frame type 77"})

        with ScriptedAgent(script) as agent, zunft.Robot(agent.path, timeout=30) as robot:
            for code, message in [
                ("bad-request", "STATUS was refused: not today (bad-request)"),
                ("bad-frame", "STATUS was refused: unknown frame type 77 (bad-frame)"),
            ]:
                with self.assertRaises(zunft.Refused) as caught:
                    robot.status()
                self.assertEqual((caught.exception.code, str(caught.exception)), (code, message))
            with self.assertRaises(zunft.ConnectionLost):
                robot.status()

    def test_agent_that_goes_away_or_talks_nonsense_is_an_error_not_a_hang(self) -> None:
        for answer, error in [
            (b"", zunft.ConnectionLost),
            (bytes([77]) * 16, zunft.ProtocolError),
            (frame(134, 1, b"[]"), zunft.ProtocolError),
            (frame(134, 1, b"\xff"), zunft.ProtocolError),
            (frame(131, 1, b"{}"), zunft.ProtocolError),
        ]:

            def script(agent: ScriptedAgent) -> None:
                agent.expect(frame(6, 1))
                agent.send(answer)

            with ScriptedAgent(script) as agent, zunft.Robot(agent.path, timeout=30) as robot:
                with self.assertRaises(error):
                    robot.status()

    def test_agent_that_turns_a_program_away_is_heard(self) -> None:
        def script(agent: ScriptedAgent) -> None:
            agent.send_json(255, 0, {"code": "busy", "message": "too many programs"})

        with ScriptedAgent(script) as agent:
            robot = zunft.Robot(agent.path, timeout=30)
            agent.wait()
            with self.assertRaisesRegex(zunft.Refused, "STATUS was refused: too many programs"):
                robot.status()
            robot.close()

    def test_connecting_says_what_to_do_when_it_fails(self) -> None:
        with self.assertRaises(zunft.ConnectError) as caught:
            zunft.Robot("/nonexistent/agent.sock")
        self.assertIn("zunft-agent run --config agent.toml", str(caught.exception))
        for greeting, message in [(b"ZLCL\0\0\0\0", "refuses version 1"), (b"HTTP/1.1", "is not a Zunft agent")]:
            with ScriptedAgent(lambda agent: None, greeting) as agent:
                with self.assertRaises(zunft.ConnectError) as caught:
                    zunft.Robot(agent.path, timeout=30)
                self.assertIn(message, str(caught.exception))


if __name__ == "__main__":
    unittest.main()
