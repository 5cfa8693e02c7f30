"""A hub and its agents as real processes on loopback, and the hub's HTTP API as the harness uses it.

It knows nothing of Meta-World. A process that ends by itself, or a wait without progress, ends the harness with the
tail of the log that explains it.
"""

from __future__ import annotations

import json
import os
import pathlib
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import Any, Callable, Dict, List, Optional, TypeVar

T = TypeVar("T")

POLL_SECS = 0.2
STALL_SECS_MAX = 120.0
"""How long anything may take without progress."""
STOP_SECS_MAX = 20.0
"""How long a process may take to stop when asked."""
LOG_TAIL_LINES = 20
SOCKET_PATH_BYTES_MAX = 107
"""Of a Unix socket on Linux."""


class Process:
    """One daemon, its log in a file; stopped with SIGTERM at the end."""

    def __init__(self, name: str, command: List[str], log: pathlib.Path, env: Optional[Dict[str, str]] = None) -> None:
        self.name = name
        self.log = log
        with log.open("wb") as output:
            streams = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output}
            self._process = subprocess.Popen(command, env={**os.environ, **(env or {})}, **streams)

    def check(self) -> None:
        """Ends the harness when the process has ended."""
        if self._process.poll() is not None:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])
            sys.exit(f"{self.name} ended with status {self._process.returncode}; the end of its log:\n{tail}")

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_SECS_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def wait(what: str, processes: List[Process], ask: Callable[[], Optional[T]], seen: Callable[[], Any]) -> T:
    """Asks until there is an answer. Gives up when what is ``seen`` has not changed for too long."""
    last, since = None, time.monotonic()
    while True:
        answer = ask()
        if answer is not None:
            return answer
        for process in processes:
            process.check()
        now = seen()
        if now != last:
            last, since = now, time.monotonic()
        if time.monotonic() - since > STALL_SECS_MAX:
            sys.exit(f"{what}: nothing happened for {STALL_SECS_MAX:.0f} s; it stands at {last}")
        time.sleep(POLL_SECS)


class Agent:
    """A robot's agent."""

    def __init__(self, name: str, folder: pathlib.Path, binaries: pathlib.Path, embodiment: pathlib.Path) -> None:
        """``embodiment`` is the robot's body (JSON): an agent that knows it installs before it has recorded."""
        self.name = name
        self.socket = folder / "agent.sock"
        command = [str(binaries / "zunft-agent"), "run", "--config", str(folder / "agent.toml")]
        body = {"ZUNFT_AGENT__EMBODIMENT": str(embodiment)}
        self.process = Process(f"agent {name}", command, folder / "agent.log", body)

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stop()


class Hub:
    """A hub with nothing in it."""

    def __init__(self, binaries: pathlib.Path, folder: pathlib.Path) -> None:
        self._binaries = binaries
        self._folder = folder
        self._data = folder / "hub-data"
        self._quic = f"127.0.0.1:{free_port(socket.SOCK_DGRAM)}"
        self._http = f"127.0.0.1:{free_port(socket.SOCK_STREAM)}"
        self._agents: List[Agent] = []
        config = folder / "hub.toml"
        config.write_text(
            f"data_dir = {json.dumps(str(self._data))}\n"
            f"[quic]\nlisten = {json.dumps(self._quic)}\n"
            f"[http]\nlisten = {json.dumps(self._http)}\n"
        )
        command = [str(binaries / "zunft"), "hub", "serve", "--config", str(config)]
        self._process = Process("hub", command, folder / "hub.log")

    def __enter__(self) -> Hub:
        try:
            wait("the hub's start", [self._process], self._answers, lambda: "no answer")
        except BaseException:
            self._process.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stop()

    def start_agent(self, name: str, embodiment: pathlib.Path) -> Agent:
        """Adds a robot and starts its agent."""
        folder = self._folder / name
        if len(os.fsencode(folder / "agent.sock")) > SOCKET_PATH_BYTES_MAX:
            sys.exit(f"{folder} is too long a path for a Unix socket; give --keep a shorter one")
        place = ["--hub", f"http://{self._http}", "--token-file", str(self._token_file), "--out", str(folder)]
        zunft(self._binaries, "robot", "add", name, "--site", "lab", *place)
        agent = Agent(name, folder, self._binaries, embodiment)
        self._agents.append(agent)
        return agent

    def wait_connected(self) -> None:
        """Waits for every agent's connection and socket."""

        def connected() -> List[str]:
            sockets = {agent.name for agent in self._agents if agent.socket.exists()}
            return [robot["robot"] for robot in self.list("/v1/robots") if robot["connected"] and robot["robot"] in sockets]

        everyone = len(self._agents)
        self._wait("connecting the agents", lambda: connected() if len(connected()) == everyone else None, connected)

    def replay(self, dataset: pathlib.Path, tasks: List[str], demos: int) -> Dict[str, Any]:
        """Plays the first ``demos`` successful episodes of each task into the agents; what was played."""
        which = ["--successful", "--episodes-per-task", str(demos), "--tasks", ",".join(tasks)]
        sockets = [word for agent in self._agents for word in ("--socket", str(agent.socket))]
        return json.loads(zunft(self._binaries, "data", "replay", str(dataset), "--json", *which, *sockets))

    def wait_durable(self, expected: int) -> List[Dict[str, Any]]:
        """Waits until the hub has that many episodes, and returns them."""

        def enough() -> Optional[List[Dict[str, Any]]]:
            episodes = self.list("/v1/episodes")
            return episodes if len(episodes) >= expected else None

        return self._wait("uploading", enough, lambda: f"{len(self.list('/v1/episodes'))} of {expected} episodes")

    def train(self, skill: str, policy: str, steps: int) -> Dict[str, Any]:
        """Trains a skill on every successful demonstration, assigned to all robots; the run when it is over."""
        body = {
            "skill": skill,
            "query": {},
            "selection": {"outcomes": ["success"], "actors": ["human"]},
            "config": {"steps": steps, "policy": {"type": policy}},
            "assign": "all",
        }
        run = self.call("POST", "/v1/runs", body)

        def latest() -> Dict[str, Any]:
            return self.call("GET", f"/v1/runs/{run['id']}")

        def ended() -> Optional[Dict[str, Any]]:
            now = latest()
            if sys.stderr.isatty():
                print(f"\r  step {now['progress']['step']} of {steps} ", end="", file=sys.stderr, flush=True)
            return now if now["state"] in ("succeeded", "failed", "stopped") else None

        run = self._wait("training", ended, lambda: (latest()["state"], latest()["progress"]["step"]))
        if sys.stderr.isatty():
            print(file=sys.stderr)
        if run["state"] != "succeeded":
            sys.exit(f"training ended as {run['state']}: {run['error']}")
        return run

    def wait_active(self, release: str) -> None:
        """Waits until the release acts on every robot."""

        def states() -> Dict[str, Any]:
            robots = self.list("/v1/robots")
            return {robot["robot"]: [on["state"] for on in robot["releases"] if on["release"] == release] for robot in robots}

        def all_active() -> Optional[bool]:
            return all(found == ["active"] for found in states().values()) or None

        self._wait(f"installing {release}", all_active, lambda: str(states()))

    def list(self, path: str) -> List[Dict[str, Any]]:
        """Every item of a list, page by page."""
        items: List[Dict[str, Any]] = []
        cursor = ""
        while True:
            page = self.call("GET", f"{path}?limit=1000{cursor}")
            items += page["items"]
            if not page.get("next_cursor"):
                return items
            cursor = f"&cursor={page['next_cursor']}"

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """One call of the HTTP API."""
        headers = {"Authorization": f"Bearer {self._token_file.read_text().strip()}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://{self._http}{path}", data, headers, method=method)
        # A proxy for the internet does not know the hub.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=60) as response:
                return json.loads(response.read())
        except urllib.error.HTTPError as error:
            sys.exit(f"the hub refused {method} {path}: {error.read().decode(errors='replace')}")

    @property
    def _token_file(self) -> pathlib.Path:
        return self._data / "pki" / "admin.token"

    def _answers(self) -> Optional[bool]:
        try:
            return self.call("GET", "/v1/robots?limit=1") is not None
        except (OSError, urllib.error.URLError):
            return None

    def _wait(self, what: str, ask: Callable[[], Optional[T]], seen: Callable[[], Any]) -> T:
        return wait(what, [self._process, *(agent.process for agent in self._agents)], ask, seen)


def describe(binaries: pathlib.Path, dataset: pathlib.Path) -> Dict[str, Any]:
    """What a dataset holds: tasks, counts and the embodiment."""
    return json.loads(zunft(binaries, "data", "show", str(dataset), "--json"))


def zunft(binaries: pathlib.Path, *words: str) -> str:
    """Runs one command to its end; what it printed. It tells on stderr itself why it failed."""
    ended = subprocess.run([str(binaries / "zunft"), *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    if ended.returncode != 0:
        sys.exit(f"zunft {' '.join(words[:2])} ended with status {ended.returncode}")
    return ended.stdout


def free_port(kind: int) -> int:
    """A port that nobody uses now."""
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
