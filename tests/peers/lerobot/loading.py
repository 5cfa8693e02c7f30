"""LeRobot's side of the claim 02-8-loading, run with a Python that has lerobot==0.4.4.

    loading.py make FOLDER FRAMES SIDE       a dataset of episodes of 100 frames with one camera, written by LeRobot itself
    loading.py run DATASET STEPS BATCH WORKERS SECONDS [--image]     prints one line of JSON

`run` draws random windows through a PyTorch DataLoader. Its first batches are not timed: workers start, caches warm.
"""

import json
import os
import pathlib
import sys
import time

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset

CAMERA = "observation.images.top"
EPISODE_FRAMES = 100
# Of a state, an action and 30 frames a second.
STATE, ACTION, FPS = 14, 14, 30


def picture(rng: np.random.Generator, side: int, episode: int, frame: int) -> np.ndarray:
    """A lit table, a block that moves over it, and a camera's noise."""
    y, x = np.mgrid[0:side, 0:side] / side
    image = np.stack([90 + 80 * x, 70 + 60 * y, 120 - 50 * x * y], axis=-1)
    place = (0.2 + 0.6 * frame / EPISODE_FRAMES, 0.3 + 0.04 * (episode % 10))
    image[(abs(x - place[0]) < 0.1) & (abs(y - place[1]) < 0.1)] = [220, 60, 40]
    return np.clip(image + rng.normal(0, 3, image.shape), 0, 255).astype(np.uint8)


def make(folder: pathlib.Path, frames: int, side: int) -> None:
    vector = lambda size: {"dtype": "float32", "shape": (size,), "names": None}
    features = {
        "observation.state": vector(STATE),
        "action": vector(ACTION),
        CAMERA: {"dtype": "image", "shape": (side, side, 3), "names": ["height", "width", "channels"]},
    }
    rng = np.random.default_rng(0)
    dataset = LeRobotDataset.create(
        "bench/images", fps=FPS, features=features, root=folder, use_videos=False, robot_type="bench"
    )
    for episode in range(frames // EPISODE_FRAMES):
        for frame in range(EPISODE_FRAMES):
            state = rng.normal(size=STATE).astype(np.float32)
            row = {"observation.state": state, "action": state, CAMERA: picture(rng, side, episode, frame)}
            dataset.add_frame(row | {"task": "bench"})
        dataset.save_episode()
    dataset.finalize()


def run(root: pathlib.Path, steps: int, batch: int, workers: int, seconds: float, image: bool) -> None:
    info = json.loads((root / "meta/info.json").read_text())
    windows = {key: [step / info["fps"] for step in range(steps)] for key in ("observation.state", "action")}
    dataset = LeRobotDataset("bench/loading", root=root, delta_timestamps=windows if steps > 1 else None)
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=batch, num_workers=workers, shuffle=True, drop_last=True, persistent_workers=True
    )
    # As many as the workers have made ahead by then.
    warm_up = 2 * workers + 2
    taken = samples = 0
    began = time.monotonic()
    while time.monotonic() - began < seconds or taken <= warm_up:
        for values in loader:
            if steps > 1:
                assert values["observation.state"].shape[:2] == (batch, steps), values["observation.state"].shape
                assert values["action_is_pad"].shape == (batch, steps)
            if image:
                assert values[CAMERA].shape[:2] == (batch, 3) and values[CAMERA].dtype == torch.float32
            taken += 1
            samples += batch
            if taken == warm_up:
                began, samples = time.monotonic(), 0
            elif taken > warm_up and time.monotonic() - began >= seconds:
                break
    print(json.dumps({"samples_per_sec": samples / (time.monotonic() - began), "samples": samples}))


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(pathlib.Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    else:
        run(pathlib.Path(sys.argv[2]), *map(int, sys.argv[3:6]), float(sys.argv[6]), "--image" in sys.argv)
