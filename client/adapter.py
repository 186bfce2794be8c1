"""LoRA adapters on a frozen base: injected once, then loaded and read in place.

PEFT injects the layers and defines names and formats; the factors live in two flat float32 buffers
(all A, all B) of which PEFT's parameters are views. Loading a client's adapter is then one copy and
no module is touched, which is what lets one shared base serve thousands of simulated clients.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from client.adapterspec import adapter_spec
from client.beneath import Beneath
from client.encoders import head_of
from client.injection import (
    MARK,
    adapter_modules,
    check_kinds,
    float32,
    inject,
    named_factors,
    peft_warnings,
)
from client.lowrank import low_rank_layers
from client.mixture import Router
from client.model import BaseModel
from client.vectors import vectors_of
from shared.errors import AdapterIncompatible, InvalidValue, UnsupportedModel
from shared.lora import AdapterSpec, Factors, Vector
from shared.mixture import Mixture

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from peft import PeftModel


def adapt(
    base: BaseModel,
    *,
    r: int,
    alpha: float,
    target_modules: str | Sequence[str],
    dropout: float = 0.0,
    rslora: bool = False,
    mixture: Mixture | None = None,
    frozen_router: bool = False,
    method: str = "",
    prompt_tokens: int = 8,
) -> AdaptedModel:
    """Inject LoRA layers into a base model.

    The base is changed in place (its weights are not): it carries one adapter until
    :meth:`AdaptedModel.release`. All factors start at zero, so the adapted model equals the base
    and cannot learn until an A is loaded (:func:`shared.lora.initial_factors`). Zeros are no start
    for IA3 or a prompt, which have to be loaded too.

    Args:
        base: a loaded base model without an adapter.
        r: as in :func:`client.adapterspec.adapter_spec`.
        alpha: ``lora_alpha``.
        target_modules: as in :func:`client.adapterspec.adapter_spec`.
        dropout: probability in ``[0, 1)`` on the adapter's input while training.
        rslora: as there.
        mixture: as there.
        frozen_router: as there.
        method: as there.
        prompt_tokens: as there.

    Raises:
        UnsupportedModel: if a target matches no linear layer, or a mixture cannot read the model.
        InvalidValue: if a number is out of range, or the base already carries an adapter.
    """
    if isinstance(dropout, bool) or not 0 <= dropout < 1:
        msg = f"dropout={dropout!r}, expected a number in [0, 1)."
        raise InvalidValue(msg)
    if getattr(base.model, MARK, False):
        msg = f"Base model {base.name!r} already carries an adapter."
        raise InvalidValue(msg, hint="Load factors into that one, or release() it first.")
    spec = adapter_spec(
        base,
        r=r,
        alpha=alpha,
        target_modules=target_modules,
        rslora=rslora,
        mixture=mixture,
        frozen_router=frozen_router,
        method=method,
        prompt_tokens=prompt_tokens,
    )
    return AdaptedModel(base, inject(base, spec, dropout), spec, dropout)


class AdaptedModel:
    """A frozen base with one adapter in float32, whatever the base is stored in.

    Attributes:
        base: the base model.
        peft_model: PEFT's model around it; ``save_pretrained`` writes PEFT's format.
        spec: names, shapes and order of the factors.
        dropout: probability on the adapter's input while training.
        layers: the layers with a pair of factors, as :mod:`client.lowrank` computes them.
        vectors: what trains of IA3 or of a prompt in place of pairs (:mod:`client.rescaled`,
            :mod:`client.softprompt`); empty for LoRA.
        beneath: a residual that lies in the base's weights, under policy ``fedex``.
        head: the dense layer that trains whole, if there is one.
        router: what chooses among the adapters of a mixture; None for one adapter.
        checkpointing: whether activations are recomputed in the backward pass.
        reentrant: whether that is torch's older, reentrant way of doing it.
    """

    def __init__(
        self, base: BaseModel, peft_model: PeftModel, spec: AdapterSpec, dropout: float
    ) -> None:
        self.base = base
        self.peft_model = peft_model
        self.spec = spec
        self.dropout = dropout
        self.checkpointing = False
        self.reentrant = False
        self._kinds = "AB"
        self.router = None if spec.mixture is None else Router(base, spec.mixture)
        self._parameters = named_factors(peft_model, spec)
        device = next(iter(self._parameters.values())).device
        self._flat = {
            kind: torch.zeros(spec.size(kind), dtype=torch.float32, device=device)
            for kind in ("A", "B")
        }
        self._views = self._share_storage()
        self._adapter_modules = adapter_modules(peft_model)
        self.layers = low_rank_layers(peft_model, self.router)
        self.vectors = vectors_of(peft_model, spec)
        by_a = {id(layer.a): layer for layer in self.layers}
        ordered = [by_a[id(self._parameters[a.name])] for a, _ in spec.pairs()]
        self.beneath = Beneath(ordered, spec)
        self.head = head_of(base.model, spec.head)
        self.set_trainable("AB")
        self._set_training(False)

    @property
    def kinds(self) -> str:
        """The kinds of factors that train: ``"A"``, ``"B"`` or ``"AB"``."""
        return self._kinds

    @property
    def trainable(self) -> list[tuple[str, torch.nn.Parameter]]:
        """Name and parameter of every factor that trains, in canonical order."""
        return [(f.name, self._parameters[f.name]) for f in self.spec.of_kind(self._kinds)]

    @property
    def device(self) -> torch.device:
        """Where the adapter lives."""
        return self._flat["A"].device

    def set_trainable(self, kinds: str) -> None:
        """Choose which factors train; the others are frozen at their values.

        Args:
            kinds: ``"A"``, ``"B"`` or ``"AB"``.
        """
        check_kinds(kinds)
        self._kinds = kinds
        for factor in self.spec.factors:
            parameter = self._parameters[factor.name]
            parameter.requires_grad_(factor.kind in kinds)
            parameter.grad = None

    def load(self, factors: Mapping[str, NDArray[Any]]) -> None:
        """Copy named factors in; factors that are not named keep their values.

        Raises:
            AdapterIncompatible: for an unknown name or another shape; nothing is loaded then.
        """
        known = {factor.name: factor for factor in self.spec.factors}
        for name, array in factors.items():
            if name not in known or tuple(array.shape) != known[name].shape:
                expected = known[name].shape if name in known else "a factor of this adapter"
                msg = f"Found {name} of shape {tuple(array.shape)}, expected {expected}."
                raise AdapterIncompatible(msg)
        with torch.no_grad():
            for name, array in factors.items():
                self._parameters[name].copy_(torch.from_numpy(float32(array)))

    def load_vector(self, vector: NDArray[Any], kinds: str) -> None:
        """Copy a flat vector into the factors of some kinds, in canonical order.

        Args:
            vector: ``spec.size(kinds)`` elements.
            kinds: ``"A"``, ``"B"`` or ``"AB"``.

        Raises:
            AdapterIncompatible: if the length is another.
        """
        check_kinds(kinds)
        if vector.shape != (self.spec.size(kinds),):
            msg = f"Found a vector of shape {vector.shape}, expected ({self.spec.size(kinds)},)."
            raise AdapterIncompatible(msg)
        source = torch.from_numpy(float32(vector))
        with torch.no_grad():
            if len(kinds) == 1:
                self._flat[kinds].copy_(source)
            else:
                sizes = [view.numel() for view in self._views]
                for view, piece in zip(self._views, torch.split(source, sizes), strict=True):
                    view.copy_(piece)

    def read_vector(self, kinds: str) -> Vector:
        """Return the factors of some kinds as one new float32 vector, in canonical order."""
        check_kinds(kinds)
        if len(kinds) == 1:
            flat = self._flat[kinds].detach().cpu()
            return flat.numpy().copy()
        return torch.cat(self._views).cpu().numpy()

    def add_vector(self, vector: torch.Tensor, *, scale: float) -> None:
        """Add ``scale * vector`` to the trainable factors in place: one SGD step.

        Args:
            vector: flat, in canonical order, ``spec.size(kinds)`` elements.
            scale: minus the learning rate.
        """
        vector = vector.detach().to(torch.float32)
        with torch.no_grad():
            if len(self._kinds) == 1:
                self._flat[self._kinds].add_(vector, alpha=scale)
                return
            sizes = [view.numel() for view in self._views]
            for view, piece in zip(self._views, torch.split(vector, sizes), strict=True):
                view.add_(piece, alpha=scale)

    def factors(self) -> Factors:
        """Return a copy of every factor by name."""
        return self.spec.unflatten(self.read_vector("AB").copy())

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Let the model be the base alone inside the ``with`` block."""
        try:
            with self.beneath.removed(), self.peft_model.disable_adapter():
                yield
        finally:
            # PEFT marks every factor as trainable when it switches the adapter on again.
            self.set_trainable(self._kinds)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Switch the adapter (its dropout, if any) to training mode inside the ``with`` block.

        The base stays in evaluation mode: its own dropout is not part of fine-tuning here, and
        evaluation and training then see the same base.
        """
        self._set_training(True)
        try:
            yield
        finally:
            self._set_training(False)

    @contextmanager
    def narrowed(self, spec: AdapterSpec) -> Iterator[None]:
        """Hold the first rows of every A and columns of every B alone inside the ``with`` block.

        The scale stays that of the whole adapter, so that a narrow adapter computes what the whole
        one does whose other columns are zero. What was loaded or trained inside is gone afterwards,
        and the whole adapter is what it was.

        Args:
            spec: the same layers at no larger rank (:meth:`shared.mixedranks.MixedRanks.spec_at`).
        """
        if spec == self.spec:
            yield
            return
        whole = self.spec, self._flat, self._views
        held = {name: parameter.data for name, parameter in self._parameters.items()}
        kinds = self._kinds
        try:
            self.spec = spec
            self._flat = {k: self._flat[k].new_zeros(spec.size(k)) for k in ("A", "B")}
            self._views = self._share_storage()
            for factor in spec.factors:
                cut = tuple(slice(extent) for extent in factor.shape)
                self._parameters[factor.name].data.copy_(held[factor.name][cut])
            self.set_trainable(kinds)
            yield
        finally:
            self.spec, self._flat, self._views = whole
            for name, parameter in self._parameters.items():
                parameter.grad = None
                parameter.data = held[name]

    @contextmanager
    def plain_peft(self) -> Iterator[None]:
        """Compute the adapted layers by PEFT's own forward inside the ``with`` block.

        Raises:
            UnsupportedModel: for a mixture, whose gates PEFT does not know, or for a prompt.
        """
        if self.router is not None:
            msg = "PEFT's own layers have no gates, which a mixture of adapters needs."
            raise UnsupportedModel(msg, hint="Use clipper='fused' or 'microbatch'.")
        if self.spec.prepended:
            msg = "PEFT's own forward gives outputs for a prompt too, which losses do not expect."
            raise UnsupportedModel(msg, hint="Use clipper='fused' or 'microbatch'.")
        own = [*self.layers, *self.vectors]
        for layer in own:
            layer.detach()
        try:
            yield
        finally:
            for layer in own:
                layer.attach()

    def enable_checkpointing(self, *, reentrant: bool = False) -> None:
        """Recompute activations in the backward pass: less memory, about a third more time.

        Args:
            reentrant: run a second backward pass inside the first one, as torch did before version
                1.11. Opacus' hooks need it; everything else works either way.

        Raises:
            UnsupportedModel: if a mixture is asked for the reentrant way, which goes back through
                the router once a block.
        """
        if reentrant and self.router is not None:
            msg = "A mixture of adapters cannot be checkpointed in the reentrant way."
            raise UnsupportedModel(msg)
        self._disable_checkpointing()
        base: Any = self.base.model
        # transformers renamed it in 5.x and warns about the old name.
        enable = getattr(base, "activation_checkpointing_enable", None)
        (enable or base.gradient_checkpointing_enable)({"use_reentrant": reentrant})
        if reentrant:
            # Blocks whose input needs no gradient would return an output without one.
            base.enable_input_require_grads()
        self._adapter_modules = adapter_modules(self.peft_model)
        self.checkpointing = True
        self.reentrant = reentrant

    def release(self) -> BaseModel:
        """Take the adapter out and return the bare base; this object is of no use afterwards."""
        self._disable_checkpointing()
        for layer in (*self.layers, *self.vectors):
            layer.detach()
        if self.router is not None:
            self.router.remove()
        with peft_warnings():
            self.peft_model.unload()
        setattr(self.base.model, MARK, False)
        return self.base

    def _disable_checkpointing(self) -> None:
        """Keep activations again; the base is then as it was loaded."""
        if not self.checkpointing:
            return
        base: Any = self.base.model
        disable = getattr(base, "activation_checkpointing_disable", None)
        (disable or base.gradient_checkpointing_disable)()
        if self.reentrant:
            base.disable_input_require_grads()
        self._adapter_modules = adapter_modules(self.peft_model)
        self.checkpointing = self.reentrant = False

    def _set_training(self, training: bool) -> None:
        """Set the flag on the adapter's modules (and checkpointed blocks) alone."""
        for module in self._adapter_modules:
            module.training = training

    def _share_storage(self) -> list[torch.Tensor]:
        """Make every factor a view of its flat buffer; return flat views in canonical order."""
        views = []
        used = {"A": 0, "B": 0}
        for factor in self.spec.factors:
            start = used[factor.kind]
            used[factor.kind] = start + factor.size
            view = self._flat[factor.kind][start : start + factor.size]
            self._parameters[factor.name].data = view.view(factor.shape)
            views.append(view)
        return views
