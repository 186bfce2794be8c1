"""An adapter as arrays, and the exported step that gives its gradients and losses.

The program is not believed: each gradient is measured and clipped here, in float64, by the clip of
the privacy core, whatever the program says it did.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from client.examples import IGNORED
from shared.errors import ConflictingSettings
from shared.lora import AdapterSpec, Vector
from shared.privacy.norms import add_scaled, clip_factor, norm_of

if TYPE_CHECKING:
    from client.edge.engine import StepEngine
    from client.examples import Example

_NO_CLIP = 3.0e38


class EdgeAdapter:
    """A LoRA adapter as float32 arrays, and the step that gives its gradients.

    The adapter may have a smaller rank than the step: it is its first rows of A and columns of B,
    and the others are zero. A zero row of A and a zero column of B give each other no gradient, and
    what the program returns there is left out in any case, before the clip.

    Args:
        engine: the exported step.
        kinds: the factors that train, ``"A"``, ``"B"`` or ``"AB"``; all others stay.
        spec: of the adapter, at the scale of the step; the step's own if not given.

    Attributes:
        engine: the exported step.
        spec: names, shapes and order of the factors.
        kinds: the factors that train.

    Raises:
        ConflictingSettings: if the step gives no gradients of those factors, or is narrower.
    """

    def __init__(self, engine: StepEngine, kinds: str, spec: AdapterSpec | None = None) -> None:
        wide = engine.manifest.adapter
        self.engine = engine
        self.spec = wide if spec is None else spec
        _require_within(self.spec, wide)
        self._vector = np.zeros(wide.size("AB"), dtype=np.float32)
        self._factors = views_of(wide, self._vector)
        self.set_trainable(kinds)

    def set_trainable(self, kinds: str) -> None:
        """Let the factors of some kinds train, and no others.

        Raises:
            ConflictingSettings: if the step gives no gradients of them.
        """
        found = self.engine.manifest.trained
        if not set(kinds) <= set(found):
            msg = f"The exported step trains {found!r}, the round trains {kinds!r}."
            raise ConflictingSettings(msg, hint="Export a step for this scenario.")
        self.kinds = kinds
        self._moving = self._places(kinds, within="AB")
        self._taken = self._places(kinds, within=found)

    @property
    def size(self) -> int:
        """Return the number of parameters that train."""
        return self.spec.size(self.kinds)

    def load(self, vector: Vector, kinds: str) -> None:
        """Copy a flat vector into the factors of some kinds, in canonical order."""
        for name, value in self.spec.unflatten(vector, kinds).items():
            self._factors[name][_corner(value.shape)] = value

    def load_vector(self, vector: Vector, kinds: str) -> None:
        """Copy a flat vector into the factors of some kinds; as an adapted model does."""
        self.load(vector, kinds)

    def read(self) -> Vector:
        """Return the factors that train as one new vector."""
        return self._vector[self._moving]

    def read_vector(self, kinds: str) -> Vector:
        """Return the factors of some kinds as one new vector, in canonical order."""
        return self._vector[self._places(kinds, within="AB")]

    def write(self, vector: Vector) -> None:
        """Replace the factors that train."""
        self._vector[self._moving] = vector

    def sum_of(
        self, examples: Iterable[Example], max_grad_norm: float = _NO_CLIP
    ) -> NDArray[np.float64]:
        """Return the sum of the examples' gradients, each clipped; float64, flat.

        Guarantee:
            Adding or removing one example changes the sum by at most ``max_grad_norm`` in L2 norm
            (:func:`shared.privacy.norms.clip_factor`), whatever the program returns. A gradient
            that is not finite adds zero.
        """
        total = np.zeros(self.size, dtype=np.float64)
        for example in examples:
            gradient = self.engine.gradient(example, self._factors)[self._taken]
            add_scaled(total, gradient, clip_factor(norm_of(gradient), max_grad_norm))
        return total

    def loss_of(self, examples: Iterable[Example]) -> float:
        """Return the mean loss per label token; NaN where no token has a label.

        It depends on private text: what is made of it leaves the device only as an event pays for.
        """
        total, tokens = 0.0, 0
        for example in examples:
            count = int(np.count_nonzero(example.labels[1:] != IGNORED))
            if count > 0:
                total += count * self.engine.loss(example, self._factors)
                tokens += count
        return total / tokens if tokens > 0 else float("nan")

    def _places(self, kinds: str, *, within: str) -> NDArray[np.int64]:
        """Return where the adapter's factors of some kinds lie in a flat vector of the step's."""
        shapes = {factor.name: factor.shape for factor in self.spec.factors}
        parts, start = [], 0
        for factor in self.engine.manifest.adapter.of_kind(within):
            if factor.kind in kinds:
                places = np.arange(start, start + factor.size).reshape(factor.shape)
                parts.append(places[_corner(shapes[factor.name])].reshape(-1))
            start += factor.size
        return np.concatenate(parts)


def views_of(spec: AdapterSpec, vector: Vector) -> dict[str, NDArray[np.float32]]:
    """Return every factor by name, each a view of a flat vector of all of them."""
    views, start = {}, 0
    for factor in spec.factors:
        views[factor.name] = vector[start : start + factor.size].reshape(factor.shape)
        start += factor.size
    return views


def _corner(shape: tuple[int, ...]) -> tuple[slice, ...]:
    """Return the place of a smaller array in the first rows and columns of a larger one."""
    return tuple(slice(size) for size in shape)


def _require_within(spec: AdapterSpec, wide: AdapterSpec) -> None:
    """Refuse an adapter that is not a part of the step's."""
    same = [factor.name for factor in spec.factors] == [factor.name for factor in wide.factors]
    pairs = zip(spec.factors, wide.factors, strict=False)
    if not (same and all(_fits(one.shape, other.shape) for one, other in pairs)):
        msg = f"An adapter of rank {spec.r} is no part of the exported step's, of rank {wide.r}."
        raise ConflictingSettings(msg, hint="Export a step for this scenario.")


def _fits(inner: tuple[int, ...], outer: tuple[int, ...]) -> bool:
    """Tell whether an array fits into another."""
    return len(inner) == len(outer) and all(n <= m for n, m in zip(inner, outer, strict=True))
