"""What a robot's body senses and commands, and how a step's arrays become bytes. It knows nothing of sockets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np

from .errors import StepError

_DTYPES = {
    "f32": np.dtype("<f4"),
    "f64": np.dtype("<f8"),
    "i64": np.dtype("<i8"),
    "u8": np.dtype("u1"),
}


IMAGES_PREFIX = "observation.images."
"""Of the names of cameras."""


@dataclass(frozen=True)
class Feature:
    """One named quantity, sensed (``observation.…``) or commanded (``action``): at every step, or as a stream of its
    own, where it has a rate or an encoding."""

    name: str
    shape: Union[int, Sequence[int]]
    """Of one step's value; a number is a vector of that length."""
    dtype: str = "f32"
    """``f32``, ``f64``, ``i64`` or ``u8``."""
    names: Sequence[str] = ()
    """What each value is called; empty where unnamed."""
    units: Sequence[str] = ()
    """Of each value (SI, radians), one for all, or empty where unknown."""
    min: Sequence[float] = ()
    """Least allowed value of each dimension; empty where unbounded."""
    max: Sequence[float] = ()
    """Greatest allowed value of each dimension; empty where unbounded."""
    rate_hz: Optional[float] = None
    """Nominal rate of samples, where it is not that of the steps."""
    encoding: Optional[str] = None
    """How the images of a camera are stored that is a stream of its own: ``jpeg`` or ``h264``."""

    def __post_init__(self) -> None:
        if self.encoding not in (None, "jpeg", "h264"):
            raise ValueError(f"camera {self.name!r} has encoding {self.encoding!r}; use jpeg or h264")
        if self.dtype not in _DTYPES:
            raise ValueError(f"feature {self.name!r} has dtype {self.dtype!r}; use one of {', '.join(_DTYPES)}")
        shape = (self.shape,) if isinstance(self.shape, (int, np.integer)) else self.shape
        object.__setattr__(self, "shape", tuple(int(dim) for dim in shape))

    @property
    def dims(self) -> Tuple[int, ...]:
        """The shape, as a tuple."""
        return self.shape  # type: ignore[return-value]

    @property
    def is_stream(self) -> bool:
        """Whether its samples are a stream of their own, and no part of a step."""
        return self.rate_hz is not None or self.encoding is not None

    def as_json(self) -> Dict[str, Any]:
        """The feature as BEGIN carries it."""
        own: Dict[str, Any] = {}
        if self.rate_hz is not None:
            own["rate_hz"] = float(self.rate_hz)
        if self.encoding is not None:
            own["encoding"] = self.encoding
        return {
            "name": self.name,
            "dtype": self.dtype,
            "shape": list(self.dims),
            "names": list(self.names),
            "units": list(self.units),
            "min": [float(value) for value in self.min],
            "max": [float(value) for value in self.max],
            **own,
        }

    def array(self, value: Any) -> np.ndarray:
        """``value`` in this feature's type and shape."""
        array = np.asarray(value)
        if array.ndim == 0 and self.dims == (1,):
            array = array.reshape(1)
        if array.shape != self.dims:
            raise StepError(f"feature {self.name!r} has shape {list(self.dims)}; the value has {list(array.shape)}")
        dtype = _DTYPES[self.dtype]
        if array.dtype == dtype:
            return array
        if array.dtype.kind not in ("biuf" if dtype.kind == "f" else "biu"):
            raise StepError(f"feature {self.name!r} is {self.dtype}; the value is {array.dtype}: convert it first")
        if dtype.kind != "f" and array.size:
            bounds = np.iinfo(dtype)
            if int(array.min()) < bounds.min or int(array.max()) > bounds.max:
                raise StepError(f"feature {self.name!r} is {self.dtype}; the value does not fit {bounds.min}..{bounds.max}")
        with np.errstate(over="ignore"):  # What overflows is infinite, and the agent refuses that.
            return array.astype(dtype)


def camera(name: str, height: int, width: int, rate_hz: float, encoding: str = "jpeg", channels: int = 3) -> Feature:
    """The camera ``observation.images.NAME``, a stream of its own."""
    return Feature(f"{IMAGES_PREFIX}{name}", (height, width, channels), "u8", rate_hz=rate_hz, encoding=encoding)


@dataclass(frozen=True)
class Embodiment:
    """A robot's body as its policies see it: features in the order in which a step carries them."""

    name: str
    rate_hz: float
    """Nominal control rate. Steps carry their real times."""
    features: Sequence[Feature]

    def as_json(self) -> Dict[str, Any]:
        """The embodiment as BEGIN carries it."""
        features = [feature.as_json() for feature in self.features]
        return {"name": self.name, "rate_hz": float(self.rate_hz), "features": features}

    def pack(self, values: Mapping[str, Any]) -> bytes:
        """One step's features, in order, as STEP carries them. Streams of their own are no part of it."""
        features = [feature for feature in self.features if not feature.is_stream]
        unknown = set(values) - {feature.name for feature in features}
        if unknown:
            known = ", ".join(repr(feature.name) for feature in features)
            stream = next((feature.name for feature in self.features if feature.is_stream and feature.name in unknown), None)
            if stream is not None:
                raise StepError(f"feature {stream!r} is a stream of its own; record it with `sample` or `image`")
            raise StepError(f"the embodiment has no feature {sorted(unknown)[0]!r}; it has {known}")
        return b"".join(feature.array(_value(values, feature)).tobytes() for feature in features)

    def stream(self, name: str) -> Tuple[int, Feature]:
        """The place and the feature of a stream of its own."""
        for place, feature in enumerate(self.features):
            if feature.name == name and feature.is_stream:
                return place, feature
        known = ", ".join(repr(feature.name) for feature in self.features if feature.is_stream) or "none"
        raise StepError(f"{name!r} is no stream of its own in this embodiment; it has {known}")

    def observation(self, values: Mapping[str, Any]) -> np.ndarray:
        """The observation features in order, concatenated, as ACT carries them. Others are passed over."""
        parts: List[np.ndarray] = [
            feature.array(_value(values, feature)).astype("<f4").reshape(-1)
            for feature in self.features
            if feature.name.startswith("observation.") and not feature.is_stream
        ]
        return np.concatenate(parts) if parts else np.zeros(0, "<f4")


def _value(values: Mapping[str, Any], feature: Feature) -> Any:
    try:
        return values[feature.name]
    except KeyError:
        raise StepError(f"the step has no value for feature {feature.name!r}") from None
