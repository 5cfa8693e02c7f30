"""How a Gymnasium space maps to features: sizes, flat vectors and back.

It reads spaces by their attributes, so that Gymnasium need not be installed. It knows nothing of sockets.

Boxes are flattened; discrete choices become one-hot vectors, since a policy's outputs are real numbers; `uint8`
boxes with three dimensions are images, and keep their type and shape.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Mapping, Tuple

import numpy as np

from .embodiment import Feature

STATE = "observation.state"
ACTION = "action"

Reader = Callable[[Any], Any]


class SpaceError(TypeError):
    """A space that has no features: text, graphs, sequences of unknown length."""


def observation_features(space: Any) -> List[Tuple[Feature, Reader]]:
    """The features of an observation space, each with what reads its value from an observation.

    A dictionary has a feature for each of its entries, ``observation.KEY``; any other space is ``observation.state``.
    """
    children = getattr(space, "spaces", None)
    if isinstance(children, Mapping):
        found: List[Tuple[Feature, Reader]] = []
        for key, child in children.items():
            found += _entry(str(key), child, lambda observation, key=key: observation[key])
        return found
    if _is_image(space):
        return [(Feature("observation.images.camera", space.shape, "u8"), lambda observation: observation)]
    return [(Feature(STATE, size(space)), lambda observation: flatten(space, observation))]


def action_feature(space: Any) -> Feature:
    """The feature ``action``: the whole space, flat. Its limits are the box's, where all are finite."""
    count = size(space)
    low, high = getattr(space, "low", None), getattr(space, "high", None)
    if _is_box(space) and np.all(np.isfinite(low)) and np.all(np.isfinite(high)):
        return Feature(ACTION, count, min=np.ravel(low).tolist(), max=np.ravel(high).tolist())
    return Feature(ACTION, count)


def size(space: Any) -> int:
    """Values of a space's flat vector."""
    return sum(
        int(np.prod(leaf.shape, dtype=int)) if _is_box(leaf) else sum(_choices(leaf)) for leaf in _leaves(space)
    )


def flatten(space: Any, value: Any) -> np.ndarray:
    """A value of the space as a flat f32 vector."""
    parts = []
    for leaf, part in _walk(space, value):
        if _is_box(leaf):
            parts.append(np.asarray(part, np.float32).reshape(-1))
            continue
        starts = np.ravel(getattr(leaf, "start", 0))
        for choice, start, count in zip(np.ravel(part), np.resize(starts, len(_choices(leaf))), _choices(leaf)):
            one_hot = np.zeros(count, np.float32)
            one_hot[int(choice) - int(start)] = 1.0
            parts.append(one_hot)
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def unflatten(space: Any, values: np.ndarray) -> Any:
    """The value of the space that is nearest to a flat vector: boxes are clipped, of choices the greatest wins."""
    value, rest = _unflatten(space, np.asarray(values, np.float32).reshape(-1))
    if rest.size:
        raise ValueError(f"{values.size} values do not fit a space of {values.size - rest.size}")
    return value


def _unflatten(space: Any, values: np.ndarray) -> Tuple[Any, np.ndarray]:
    children = getattr(space, "spaces", None)
    if isinstance(children, Mapping):
        entries: Dict[Any, Any] = {}
        for key, child in children.items():
            entries[key], values = _unflatten(child, values)
        return entries, values
    if children is not None:
        items = []
        for child in children:
            item, values = _unflatten(child, values)
            items.append(item)
        return tuple(items), values
    count = size(space)
    if values.size < count:
        raise ValueError(f"{values.size} values are left for a space of {count}")
    mine, rest = values[:count], values[count:]
    if _is_box(space):
        low, high = getattr(space, "low", 0), getattr(space, "high", 1)
        mine = mine.reshape(space.shape)
        if np.dtype(space.dtype).kind != "f":
            mine = np.rint(mine)
        return np.clip(mine, low, high).astype(space.dtype), rest
    picks, at = [], 0
    for choices in _choices(space):
        picks.append(int(np.argmax(mine[at : at + choices])))
        at += choices
    start = getattr(space, "start", 0)
    if not space.shape:
        return int(picks[0] + np.ravel(start)[0]), rest
    return (np.reshape(picks, space.shape) + start).astype(space.dtype), rest


def _entry(name: str, space: Any, read: Reader) -> List[Tuple[Feature, Reader]]:
    children = getattr(space, "spaces", None)
    if isinstance(children, Mapping):
        found: List[Tuple[Feature, Reader]] = []
        for key, child in children.items():
            inner = lambda observation, key=key: read(observation)[key]  # noqa: E731
            found += _entry(f"{name}.{key}", child, inner)
        return found
    if _is_image(space):
        return [(Feature(f"observation.images.{name}", space.shape, "u8"), read)]
    return [(Feature(f"observation.{name}", size(space)), lambda observation: flatten(space, read(observation)))]


def _leaves(space: Any) -> List[Any]:
    children = getattr(space, "spaces", None)
    if children is None:
        return [space]
    return [leaf for child in _children(children) for leaf in _leaves(child)]


def _walk(space: Any, value: Any) -> List[Tuple[Any, Any]]:
    children = getattr(space, "spaces", None)
    if children is None:
        return [(space, value)]
    keys = list(children) if isinstance(children, Mapping) else range(len(children))
    return [pair for key in keys for pair in _walk(children[key], value[key])]


def _children(children: Any) -> List[Any]:
    return list(children.values()) if isinstance(children, Mapping) else list(children)


def _is_image(space: Any) -> bool:
    return hasattr(space, "low") and len(space.shape) == 3 and np.dtype(space.dtype) == np.uint8


def _is_box(space: Any) -> bool:
    # MultiBinary is a box of zeros and ones.
    return hasattr(space, "low") or type(space).__name__ == "MultiBinary"


def _choices(space: Any) -> List[int]:
    """The number of choices of each discrete part."""
    if hasattr(space, "nvec"):
        return [int(count) for count in np.ravel(space.nvec)]
    if hasattr(space, "n"):
        return [int(space.n)]
    raise SpaceError(
        f"space {type(space).__name__} has no features; use Box, Discrete, MultiDiscrete, MultiBinary, "
        "or Dict and Tuple of them (a Gymnasium wrapper can convert it)"
    )
