"""The stages of the Meta-World harness, in the order in which they happen."""

from __future__ import annotations

import argparse
import contextlib
import json
import pathlib
import subprocess
import sys
import tempfile
from typing import Any, Dict, Iterator, List

import fleet

ROOT = pathlib.Path(__file__).resolve().parents[2]
ROLLOUT = pathlib.Path(__file__).resolve().with_name("rollout.py")

ROBOTS = 10
"""Robots and agents: one for each task of MT10."""

SKILL = "metaworld"


def run(arguments: argparse.Namespace) -> None:
    """Runs every stage and reports. Ends the program with an error when a stage fails."""
    binaries = arguments.bin.resolve() if arguments.bin else build()
    dataset = fleet.describe(binaries, arguments.dataset)
    tasks = tasks_of(dataset, arguments)
    with work_folder(arguments.keep) as folder, fleet.Hub(binaries, folder) as hub, contextlib.ExitStack() as stack:
        body = folder / "embodiment.json"
        body.write_text(json.dumps(dataset["embodiments"][0]))
        agents = [stack.enter_context(hub.start_agent(f"sawyer-{number}", body)) for number in range(ROBOTS)]
        hub.wait_connected()
        say(f"a hub and {len(agents)} agents are up")
        played = hub.replay(arguments.dataset, tasks, arguments.demos)
        hub.wait_durable(played["episodes"])
        say(f"{played['episodes']} demonstrations with {played['steps']} steps are durable on the hub")
        trained = hub.train(SKILL, arguments.policy, arguments.steps)
        train_seconds = (trained["ended_unix_ms"] - trained["started_unix_ms"]) / 1000
        say(f"{trained['release']} is trained: {arguments.steps} steps in {train_seconds:.0f} s")
        hub.wait_active(trained["release"])
        say(f"{trained['release']} is active on all robots, which act now")
        rollouts = roll_out(arguments, tasks, body, [agent.socket for agent in agents])
        durable = hub.wait_durable(played["episodes"] + len(rollouts))
    check_recorded(rollouts, durable, trained["release"])
    report(arguments, tasks, rollouts, len(durable), train_seconds)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def work_folder(keep: pathlib.Path | None) -> Iterator[pathlib.Path]:
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="zunft-metaworld-") as folder:
            yield pathlib.Path(folder)
        return
    if keep.exists():
        sys.exit(f"{keep} exists; give --keep a folder that does not")
    keep.mkdir(parents=True)
    yield keep.resolve()


def build() -> pathlib.Path:
    """The release binaries; nothing is done when they are up to date."""
    command = ["cargo", "build", "--release", "--locked", "-p", "zunft-cli", "-p", "zunft-agent"]
    subprocess.run(command, cwd=ROOT, check=True)
    metadata = ["cargo", "metadata", "--format-version", "1", "--no-deps"]
    described = subprocess.run(metadata, cwd=ROOT, check=True, stdout=subprocess.PIPE)
    return pathlib.Path(json.loads(described.stdout)["target_directory"]) / "release"


def tasks_of(dataset: Dict[str, Any], arguments: argparse.Namespace) -> List[str]:
    """The tasks wanted, each with a demonstration at least and known to Meta-World."""
    from metaworld import ALL_V3_ENVIRONMENTS

    tasks = arguments.tasks or list(dataset["tasks"])
    problems = []
    for task in tasks:
        successes = dataset["tasks"].get(task, {}).get("success", 0)
        if task not in ALL_V3_ENVIRONMENTS:
            problems.append(f"Meta-World has no task {task}; choose others with --tasks")
        elif successes == 0:
            problems.append(f"{arguments.dataset} has no successful episode of {task}; choose others with --tasks")
        elif successes < arguments.demos:
            say(f"{task} has {successes} successful episodes, not {arguments.demos}: all of them are used")
    if problems:
        sys.exit("\n".join(problems))
    return tasks


def roll_out(
    arguments: argparse.Namespace, tasks: List[str], embodiment: pathlib.Path, sockets: List[pathlib.Path]
) -> List[Dict[str, Any]]:
    """Lets a robot act on each task, as many at once as there are robots; every episode's line."""
    rollouts: List[Dict[str, Any]] = []
    for begin in range(0, len(tasks), len(sockets)):
        robots = []
        for task, socket in zip(tasks[begin:], sockets):
            command = [sys.executable, str(ROLLOUT), "--socket", str(socket), "--skill", SKILL, "--task", task]
            command += ["--embodiment", str(embodiment), "--goals", str(arguments.goals), "--seed", str(arguments.seed)]
            robots.append((task, subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)))
        for task, robot in robots:
            output, _ = robot.communicate()
            if robot.returncode != 0:
                for _, other in robots:
                    other.kill()
                sys.exit(f"the robot of {task} ended with status {robot.returncode}")
            lines = [json.loads(line) for line in output.splitlines()]
            rollouts += lines
            say(f"  {task}: {sum(line['success'] for line in lines)} of {len(lines)}")
    return rollouts


def check_recorded(rollouts: List[Dict[str, Any]], durable: List[Dict[str, Any]], release: str) -> None:
    """Every rollout must be on the hub, with its outcome and the release that acted."""
    stored = {episode["id"]: episode for episode in durable}
    for line in rollouts:
        outcome = "success" if line["success"] else "failure"
        found = stored.get(line["episode"])
        said = found and (found["task"], found["outcome"], found["release"], found["steps"])
        if said != (line["task"], outcome, release, line["steps"]):
            sys.exit(f"the hub has {said} for the rollout {line}")


def report(
    arguments: argparse.Namespace, tasks: List[str], rollouts: List[Dict[str, Any]], durable: int, train_seconds: float
) -> None:
    success = {}
    for task in tasks:
        outcomes = [line["success"] for line in rollouts if line["task"] == task]
        success[task] = sum(outcomes) / len(outcomes)
    mean = sum(success.values()) / len(success)
    width = max(len(task) for task in tasks)
    for task, rate in success.items():
        print(f"{task:<{width}}  {100 * rate:5.1f} %")
    print(f"{'mean':<{width}}  {100 * mean:5.1f} %")
    print(f"{arguments.demos} demonstrations a task, {arguments.steps} training steps in {train_seconds:.0f} s, "
          f"{arguments.goals} held-out goals a task of seed {arguments.seed}, {durable} episodes durable")
    if arguments.json:
        result = {
            "success": success,
            "mean": mean,
            "episodes_durable": durable,
            "train_seconds": train_seconds,
            "demos": arguments.demos,
            "steps": arguments.steps,
            "goals": arguments.goals,
            "seed": arguments.seed,
            "policy": arguments.policy,
        }
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
