"""LoRA adapters as named factors and as one flat vector.

``y = W0 x + s B A x`` with ``A (r, d_in)``, ``B (d_out, r)`` and ``s = alpha / r``, or
``alpha / sqrt(r)`` in rsLoRA (arXiv:2312.03732); several adapters that a router mixes are pairs
of a larger rank (:mod:`shared.mixture`), and IA3 and prompts are no pairs at all
(:mod:`shared.adaptermethod`). A vector is the concatenation of the row-major
factors in the canonical order of the :class:`AdapterSpec`; it is what is clipped, noised, sent and
averaged. Nothing here needs torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.adaptermethod import PROMPT, Method
from shared.canonical import canonical_json, sha256_hex
from shared.errors import AdapterIncompatible, InvalidValue
from shared.mixture import ROUTER, Mixture
from shared.seeding import data_rng

Vector = NDArray[np.float32]
Factors = dict[str, NDArray[np.float32]]


def plain_name(name: str) -> str:
    """Return the base model's own name of a module or tensor inside a PEFT model."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


@dataclass(frozen=True, slots=True, kw_only=True)
class Factor:
    """One LoRA factor, or a tensor of a head that trains whole.

    Attributes:
        name: PEFT's key in ``adapter_model.safetensors``.
        kind: ``"A"`` or ``"B"``; a head's tensors start at zero like B, and travel with it. A
            router travels with B, or is frozen with A.
        shape: ``(r, d_in)`` for A, ``(d_out, r)`` for B; that of a head or a router.
    """

    name: str
    kind: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of parameters."""
        return math.prod(self.shape)

    @property
    def low_rank(self) -> bool:
        """Whether it is one of a pair of factors."""
        return ".lora_" in self.name

    @property
    def routes(self) -> bool:
        """Whether it is the router of a mixture."""
        return self.name.endswith(f".{ROUTER}.weight")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSpec:
    """Names, shapes and order of every factor of an adapter; public.

    Attributes:
        factors: sorted by name; every A has a B of the same module.
        r: rank of every factor pair.
        lora_alpha: the numerator of the scale ``s``.
        target_modules: the module names that carry an adapter, as PEFT takes them.
        fan_in_fan_out: True for bases that store ``(d_in, d_out)`` weights (GPT-2's Conv1D).
        head: the dense layer that trains whole and whose tensors are among the factors; or "".
        identities: square layers that the checkpoint lacks, and their widths: frozen identities.
        rslora: whether ``s`` is ``lora_alpha / sqrt(r)`` and not ``lora_alpha / r``.
        mixture: how the adapters are mixed that each pair holds, ``r / adapters`` rows of A and
            columns of B each; None for one adapter.
        method: what the adapter is if it is no low-rank product; all its tensors are of kind B.
    """

    factors: tuple[Factor, ...]
    r: int
    lora_alpha: float
    target_modules: tuple[str, ...]
    fan_in_fan_out: bool = False
    rslora: bool = False
    head: str = ""
    identities: tuple[tuple[str, int], ...] = ()
    mixture: Mixture | None = None
    method: Method | None = None

    def __post_init__(self) -> None:
        """Check order, uniqueness and that factors come in pairs."""
        names = [f.name for f in self.factors]
        if not names or names != sorted(set(names)):
            msg = "An adapter needs at least one factor, sorted by unique names."
            raise AdapterIncompatible(msg)
        if self.method is not None:
            self.method.check([(f.name, f.kind, f.shape) for f in self.factors])
            return
        kinds = {f.kind for f in self.factors}
        whole = self.head or self.mixture
        pairs = [f.kind for f in self.factors if f.low_rank or not whole]
        if not kinds <= {"A", "B"} or pairs.count("A") != pairs.count("B"):
            msg = f"Found factor kinds {sorted(kinds)}, expected as many A as B."
            raise AdapterIncompatible(msg)
        self._check_mixture()

    def _check_mixture(self) -> None:
        """Require one router where adapters are mixed, and none elsewhere."""
        routers = [f.shape[0] for f in self.factors if f.routes]
        adapters = 1 if self.mixture is None else self.mixture.adapters
        if routers != ([] if self.mixture is None else [adapters]) or self.r % adapters:
            msg = f"Found {len(routers)} routers and rank {self.r} for {adapters} adapters."
            raise AdapterIncompatible(msg)

    @property
    def scale(self) -> float:
        """The factor ``s`` of the product ``B A``."""
        return self.lora_alpha / (math.sqrt(self.r) if self.rslora else self.r)

    @property
    def prepended(self) -> int:
        """Number of trained vectors in front of every text: those of a prompt."""
        prompt = self.method is not None and self.method.name == PROMPT
        return self.factors[0].shape[0] if prompt else 0

    @property
    def layers(self) -> tuple[str, ...]:
        """PEFT's names of the layers that carry a pair of factors, in canonical order."""
        return tuple(f.name.removesuffix(".lora_A.weight") for f in self.of_kind("A") if f.low_rank)

    def of_kind(self, kinds: str) -> tuple[Factor, ...]:
        """Return the factors of some kinds (``"B"``, ``"AB"``) in canonical order."""
        return tuple(f for f in self.factors if f.kind in kinds)

    def pairs(self) -> tuple[tuple[Factor, Factor], ...]:
        """Return A and B of each adapted layer, in canonical order; head and router are no pair."""
        whole = self.head or self.mixture or self.method
        low = [factor for factor in self.factors if factor.low_rank or not whole]
        a, b = ([factor for factor in low if factor.kind == kind] for kind in "AB")
        return tuple(zip(a, b, strict=True))

    def size(self, kinds: str = "AB") -> int:
        """Return the number of parameters of some kinds."""
        return sum(f.size for f in self.of_kind(kinds))

    def flatten(self, factors: Mapping[str, NDArray[Any]], kinds: str = "AB") -> Vector:
        """Concatenate factors into one float32 vector.

        Args:
            factors: one array per factor name; others are ignored.
            kinds: which kinds to take.

        Returns:
            A vector of ``size(kinds)`` elements.

        Raises:
            AdapterIncompatible: if a factor is missing or has another shape.
        """
        parts = []
        for factor in self.of_kind(kinds):
            array = factors.get(factor.name)
            if array is None or tuple(array.shape) != factor.shape:
                found = "nothing" if array is None else f"shape {tuple(array.shape)}"
                msg = f"Found {found} for {factor.name}, expected shape {factor.shape}."
                raise AdapterIncompatible(msg)
            parts.append(np.asarray(array, dtype=np.float32).reshape(-1))
        return np.concatenate(parts)

    def unflatten(self, vector: NDArray[Any], kinds: str = "AB") -> Factors:
        """Cut a flat vector into named factors; the inverse of :meth:`flatten`.

        Raises:
            AdapterIncompatible: if the vector does not have ``size(kinds)`` elements.
        """
        if vector.shape != (self.size(kinds),):
            msg = f"Found a vector of shape {vector.shape}, expected ({self.size(kinds)},)."
            raise AdapterIncompatible(msg)
        factors: Factors = {}
        start = 0
        for factor in self.of_kind(kinds):
            piece = vector[start : start + factor.size]
            factors[factor.name] = np.asarray(piece, dtype=np.float32).reshape(factor.shape)
            start += factor.size
        return factors

    def digest(self) -> str:
        """Return the SHA-256 of the canonical JSON form."""
        return sha256_hex(canonical_json(self.to_json()))

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form that :meth:`from_json` reads."""
        return {
            "factors": [[f.name, f.kind, list(f.shape)] for f in self.factors],
            "r": self.r,
            "lora_alpha": self.lora_alpha,
            "target_modules": list(self.target_modules),
            "fan_in_fan_out": self.fan_in_fan_out,
            # Left out where it is not set: digests of plain adapters stay what they were.
            **({"rslora": True} if self.rslora else {}),
            **({"head": self.head} if self.head else {}),
            **({"identities": list(map(list, self.identities))} if self.identities else {}),
            **({} if self.mixture is None else {"mixture": self.mixture.to_json()}),
            **({} if self.method is None else {"method": self.method.to_json()}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> AdapterSpec:
        """Read the JSON form of :meth:`to_json`.

        Raises:
            AdapterIncompatible: if a field is missing or malformed.
        """
        try:
            factors = tuple(
                Factor(name=str(name), kind=str(kind), shape=tuple(int(n) for n in shape))
                for name, kind, shape in data["factors"]
            )
            return cls(
                factors=factors,
                r=int(data["r"]),
                lora_alpha=float(data["lora_alpha"]),
                target_modules=tuple(str(m) for m in data["target_modules"]),
                fan_in_fan_out=bool(data["fan_in_fan_out"]),
                rslora=bool(data.get("rslora", False)),
                head=str(data.get("head", "")),
                identities=tuple((str(n), int(w)) for n, w in data.get("identities", ())),
                mixture=Mixture.from_json(data["mixture"]) if "mixture" in data else None,
                method=Method.from_json(data["method"]) if "method" in data else None,
            )
        except (KeyError, TypeError, ValueError, IndexError) as error:
            msg = "An adapter specification is malformed."
            raise AdapterIncompatible(msg) from error


def initial_factors(spec: AdapterSpec, seed: int) -> Factors:
    """Make the factors that every client and the server start from.

    Each A has orthonormal rows drawn from the public ``seed`` (Haar-distributed up to signs), each
    B is zero, so that the adapted model equals the base. Orthonormal rows make the product's noise
    independent of A's scale, and A costs no bytes: the seed is enough (docs/privacy.md). A router
    is drawn from the same seed, standard normal, and the rows of A of two adapters are orthogonal:
    adapters that began alike would get one gradient and stay alike. IA3 starts at ones and a prompt
    at vectors of the seed (:meth:`shared.adaptermethod.Method.first`).

    Args:
        spec: shapes of the factors.
        seed: public; not a secret and not used for noise.

    Returns:
        One float32 array per factor.

    Raises:
        InvalidValue: if ``r`` exceeds a module's input width, where no such A exists.
    """
    factors: Factors = {}
    for factor in spec.factors:
        if spec.method is not None:
            factors[factor.name] = spec.method.first(factor.name, factor.shape, seed)
            continue
        if factor.routes:
            drawn = data_rng(seed, "router", factor.name).standard_normal(factor.shape)
            factors[factor.name] = drawn.astype(np.float32)
            continue
        if factor.kind == "B":
            factors[factor.name] = np.zeros(factor.shape, dtype=np.float32)
            continue
        rows, columns = factor.shape
        if rows > columns:
            msg = f"lora.r={rows}, expected at most {columns}, the input width of {factor.name}."
            raise InvalidValue(msg)
        gaussian = data_rng(seed, "lora-A", factor.name).standard_normal((columns, rows))
        orthonormal, upper = np.linalg.qr(gaussian)
        factors[factor.name] = np.ascontiguousarray(
            (orthonormal * np.sign(np.diag(upper))).T, dtype=np.float32
        )
    return factors


def module_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return the sorted set of last components ("q_proj") of dotted module names."""
    return tuple(sorted({name.rsplit(".", 1)[-1] for name in names}))


def coordinates(spec: AdapterSpec, kinds: str, *, within: str) -> NDArray[np.bool_]:
    """Return which coordinates of a flat vector belong to some kinds of factors.

    Args:
        spec: names and shapes of the factors.
        kinds: the kinds that are looked for, all of them in ``within``.
        within: the kinds that the vector holds.

    Returns:
        A mask of ``spec.size(within)`` elements; ``vector[mask]`` is in canonical order.
    """
    held = spec.of_kind(within)
    return np.repeat([f.kind in kinds for f in held], [f.size for f in held])
