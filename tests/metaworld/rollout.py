"""One robot of the Meta-World harness: acts in MuJoCo through its agent's socket, and records what it does.

The evaluation protocol: one environment for the task, seeded; the first goals of ``MT1(task, seed)`` in their order;
an episode is a success at the first step that Meta-World calls one, a failure after 500 steps. Prints one JSON line
an episode. It knows its agent and nothing of the hub.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import random
import sys
import time
import warnings

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "agent" / "python"))
import zunft  # noqa: E402

STATE = "observation.state"
STEPS_MAX = 500
"""Meta-World's own limit: a step past it raises."""


def embodiment_of(path: pathlib.Path) -> zunft.Embodiment:
    """The body that the demonstrations were recorded with."""
    body = json.loads(path.read_text())
    features = [zunft.Feature(**feature) for feature in body["features"]]
    if [feature.name for feature in features] != [STATE, "action"]:
        sys.exit(f"the dataset has {', '.join(feature.name for feature in features)}; Meta-World has {STATE}, action")
    return zunft.Embodiment(body["name"], body["rate_hz"], features)


def roll_out(robot: zunft.Robot, skill: str, task: str, embodiment: zunft.Embodiment, goals: int, seed: int) -> None:
    """Acts once for each goal."""
    from metaworld import MT1  # A second or two: after the arguments were checked.

    random.seed(seed)
    np.random.seed(seed)
    mt1 = MT1(task, seed=seed)
    env = mt1.train_classes[task]()
    env.seed(seed)
    if goals > len(mt1.train_tasks):
        sys.exit(f"{task} has {len(mt1.train_tasks)} goals; lower --goals")
    for goal, variation in enumerate(mt1.train_tasks[:goals]):
        env.set_task(variation)
        observation, _ = env.reset()
        with robot.record(task, embodiment, zunft.skill(skill)) as recording:
            success = False
            while not success and recording.steps < STEPS_MAX:
                observed_ns = time.monotonic_ns()
                state = observation.astype(np.float32)
                action = np.clip(recording.act({STATE: state}).values, -1, 1)
                observation, reward, _, _, info = env.step(action)
                recording.step({STATE: state, "action": action}, float(reward), observed_ns)
                success = int(info["success"]) == 1
            outcome = ("success", "terminated") if success else ("failure", "truncated")
            ended = recording.end(*outcome)
        line = {"task": task, "goal": goal, "success": success, "steps": ended.steps, "episode": ended.episode}
        print(json.dumps({**line, "release": recording.release}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--socket", required=True)
    parser.add_argument("--skill", required=True)
    parser.add_argument("--task", required=True)
    parser.add_argument("--embodiment", type=pathlib.Path, required=True, help="JSON")
    parser.add_argument("--goals", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", module="gymnasium|metaworld")
    embodiment = embodiment_of(arguments.embodiment)
    with zunft.Robot(arguments.socket, timeout=60) as robot:
        roll_out(robot, arguments.skill, arguments.task, embodiment, arguments.goals, arguments.seed)


if __name__ == "__main__":
    main()
