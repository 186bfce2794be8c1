"""Answers on the device: base model and newest verified adapter, and no query ever leaves.

Everything is read from local folders, and nothing here opens a connection, logs a prompt or keeps
an answer. The newest adapter is verified before it is loaded; if it is refused, the one before it
is used with a warning; if none verifies, nothing answers unless the bare base was asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from client.adapterrules import AdapterPolicy
from client.adapterstore import AdapterStore
from client.home import DeviceHome, default_home
from client.personalstore import PersonalFacts, PersonalStore
from shared.errors import (
    AdapterError,
    AdapterIncompatible,
    AdapterUntrusted,
    ConfigError,
    ModelError,
    ModelNotFound,
    UsageError,
)

if TYPE_CHECKING:
    from client.adapter import AdaptedModel
    from client.adapterfiles import VerifiedAdapter
    from client.generation import Answer
    from client.model import BaseModel
    from shared.manifest import AdapterManifest

DEMO = "demo"
_BASE_ONLY = "To get answers without an adapter: --base-only, or base_only=True."

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalModel:
    """A language model on this device. One question at a time; not for several threads.

    Attributes:
        base: the base model.
        adapted: the base with its adapter; None without one.
        adapter: the manifest of the adapter; None without one.
        warnings: what the user should know (an adapter that was refused, and why).
        personal: the owner's own adapter in place of the shared one; None without it.
    """

    base: BaseModel
    adapted: AdaptedModel | None
    adapter: AdapterManifest | None
    warnings: tuple[str, ...]
    personal: PersonalFacts | None = None

    @classmethod
    def load(
        cls,
        home: DeviceHome | Path | None = None,
        *,
        base: str | Path | None = None,
        store: AdapterStore | None = None,
        quantization: str = "none",
        base_only: bool = False,
        policy: AdapterPolicy | None = None,
        warn: Callable[[str], None] | None = None,
        personal: bool = False,
    ) -> LocalModel:
        """Load base and newest verified adapter of an enrolled device, or of folders.

        Args:
            home: the device's folder; the default one if neither base nor store is given.
            base: a transformers folder or "demo"; by default what the device was enrolled with.
            store: the verified adapters; by default the device's own.
            quantization: how the base is stored in memory, as :func:`client.model.load_base`.
            base_only: answer without an adapter, and look at none.
            policy: what the owner demands of an adapter; by default what the policy file says.
            warn: is told at once what should be known; the module's logger by default.
            personal: answer with the owner's own adapter (``fedslm client personalise``). One that
                was made on another adapter than the one in use is stale: it is left out with a
                warning, because that adapter may have been withdrawn.

        Returns:
            The model; loading takes seconds, so keep it.

        Raises:
            AdapterUntrusted: if no adapter verifies, or there is none, and base_only is False.
            ModelNotFound: if the base is no local folder; nothing is fetched.
            FleetError: if the device is not enrolled.
            UsageError: if a personal adapter is wanted and there is none, or no device to have it.
            MissingDependency: if torch or transformers is not installed.
        """
        device = _device(home, needed=base is None or (store is None and not base_only) or personal)
        own = _own(device, base_only=base_only) if personal else None
        folder = base_folder(str(base if base is not None else _config_base(device)))
        from client.model import load_base

        loaded = load_base(str(folder), quantization=quantization)
        if base_only:
            return cls(base=loaded, adapted=None, adapter=None, warnings=())
        adapters = store or _store(device, loaded.digest, policy)
        notes: list[str] = []
        told = warn or logger.warning
        adapted, manifest = _adapt_newest(loaded, adapters, notes, told)
        facts = None if own is None else _take_own(own, adapted, manifest, notes, told)
        return cls(
            base=loaded, adapted=adapted, adapter=manifest, warnings=tuple(notes), personal=facts
        )

    def stream(
        self,
        prompt: str,
        *,
        max_tokens: int = 128,
        temperature: float = 0.0,
        top_k: int = 50,
        seed: int | None = None,
    ) -> Iterator[str]:
        """Yield an answer piece by piece; arguments and errors as :meth:`generate`."""
        from client.generation import Generator

        return Generator(model=self._module(), tokenizer=self.base.tokenizer).pieces(
            prompt, max_tokens=max_tokens, temperature=temperature, top_k=top_k, seed=seed
        )

    def generate(
        self,
        prompt: str,
        *,
        max_tokens: int = 128,
        temperature: float = 0.0,
        top_k: int = 50,
        seed: int | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> Answer:
        """Answer a prompt.

        Args:
            prompt: markers such as ``</s>`` in it are text.
            max_tokens: how many tokens are written at most; fewer if the model's window is full.
            temperature: 0 for the likeliest token each time; otherwise tokens are drawn.
            top_k: among how many of the likeliest tokens is drawn.
            seed: of the draws; fresh ones from the operating system without it.
            on_text: is given each piece of text as it is written.

        Returns:
            The text, how many tokens there were, and why it ended.

        Raises:
            InvalidValue: if a number is out of range, or the prompt fills the model's window.
            AdapterCorrupt: if the model gives numbers that are not finite.
        """
        from client.generation import Generator

        return Generator(model=self._module(), tokenizer=self.base.tokenizer).answer(
            prompt,
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            seed=seed,
            on_text=on_text,
        )

    def _module(self) -> object:
        """Return what computes logits."""
        return self.base.model if self.adapted is None else self.adapted.peft_model


def load(
    home: DeviceHome | Path | None = None, *, base_only: bool = False, personal: bool = False
) -> LocalModel:
    """Load the model of an enrolled device; see :meth:`LocalModel.load`."""
    return LocalModel.load(home, base_only=base_only, personal=personal)


def base_folder(base: str) -> Path:
    """Return the local folder of a base model; a hub id is refused, because nothing is fetched.

    Args:
        base: "demo" for the model that comes with fedslm, or a folder.

    Raises:
        ModelNotFound: if there is no such folder.
    """
    if base == DEMO:
        spec = find_spec("simulations")
        for place in (spec.submodule_search_locations or ()) if spec is not None else ():
            folder = Path(place) / "assets" / DEMO
            if folder.is_dir():
                return folder
    folder = Path(base).expanduser()
    if not folder.is_dir():
        msg = f"The base model {folder.name!r} is no folder on this device."
        raise ModelNotFound(msg, hint="Give the folder of a model; answering fetches nothing.")
    return folder


def _device(home: DeviceHome | Path | None, *, needed: bool) -> DeviceHome | None:
    """Return the device's folder, opened if it is needed."""
    if isinstance(home, DeviceHome):
        return home
    if home is None and not needed:
        return None
    return DeviceHome.open(default_home() if home is None else home)


def _config_base(device: DeviceHome | None) -> str:
    """Return the base that a device was enrolled with."""
    return DEMO if device is None else device.config.base


def _store(
    device: DeviceHome | None, base_digest: str, policy: AdapterPolicy | None
) -> AdapterStore:
    """Return the verified adapters of a device."""
    key = None if device is None else device.config.adapter_key
    if device is None or key is None:
        msg = "This device knows no key that signs adapters."
        raise AdapterUntrusted(msg, hint=f"Enroll again to get it. {_BASE_ONLY}")
    asked = policy or AdapterPolicy.of_owner(device.policy)
    return AdapterStore(device.adapters, trusted_key=key, base_digest=base_digest, policy=asked)


def _adapt_newest(
    base: BaseModel, store: AdapterStore, notes: list[str], warn: Callable[[str], None]
) -> tuple[AdaptedModel, AdapterManifest]:
    """Load the newest adapter that verifies; say which were refused."""
    found = store.candidates()
    for digest in found:
        try:
            verified = store.load(digest)
            adapted = _fit(base, verified)
        except AdapterError as error:
            note = f"Adapter {digest[:12]} is not used [{error.code}]: {error.message}"
            notes.append(note)
            warn(note)
            continue
        if notes:
            note = f"Going on with the adapter before it, {digest[:12]}."
            notes.append(note)
            warn(note)
        return adapted, verified.manifest
    if not found:
        msg = "No adapter is installed on this device."
        raise AdapterUntrusted(msg, hint=f"A running node fetches the newest. {_BASE_ONLY}")
    msg = f"None of {len(found)} installed adapters verifies: {' '.join(notes)}"
    raise AdapterUntrusted(msg, hint=f"Fetch the newest again. {_BASE_ONLY}")


def _own(device: DeviceHome | None, *, base_only: bool) -> PersonalStore:
    """Return where the owner's own adapter is.

    Raises:
        UsageError: if there is none, or no adapter is wanted at all.
    """
    if base_only or device is None:
        msg = "A personal adapter goes on top of a device's shared one."
        raise UsageError(msg, hint="Leave out --base-only, and give the device's folder.")
    store = PersonalStore(device.personal)
    if store.facts() is None:
        msg = "There is no personal adapter on this device."
        raise UsageError(msg, hint="Make it: fedslm client personalise")
    return store


def _take_own(
    store: PersonalStore,
    adapted: AdaptedModel,
    manifest: AdapterManifest,
    notes: list[str],
    warn: Callable[[str], None],
) -> PersonalFacts | None:
    """Put the owner's own factors in the place of the shared ones, unless they are stale."""
    found = store.load({factor.name: factor.shape for factor in adapted.spec.factors})
    if found is None or found[0].adapter != manifest.digest:
        made_on = "another" if found is None else found[0].adapter[:12]
        note = f"The personal adapter is not used: it was made on adapter {made_on}, and "
        note += f"{manifest.digest[:12]} is in use. Make it again: fedslm client personalise"
        notes.append(note)
        warn(note)
        return None
    facts, factors = found
    adapted.load(factors)
    return facts


def _fit(base: BaseModel, verified: VerifiedAdapter) -> AdaptedModel:
    """Put a verified adapter on the base.

    Raises:
        AdapterIncompatible: if its factors are not those of this base's layers.
        AdapterUntrusted: if it was trained on another base.
    """
    from client.adapter import adapt
    from client.adapterspec import adapter_spec

    if verified.manifest.base_digest != base.digest:
        msg = f"adapter {verified.digest[:12]}: it belongs to another base model."
        raise AdapterUntrusted(msg)
    terms = verified.terms
    try:
        spec = adapter_spec(
            base,
            r=terms.r,
            alpha=terms.lora_alpha,
            target_modules=terms.target_modules,
            rslora=terms.rslora,
            mixture=terms.mixture,
        )
    except (AdapterIncompatible, ConfigError, ModelError) as error:
        msg = f"adapter {verified.digest[:12]}: the base has no such layers."
        raise AdapterIncompatible(msg) from error
    expected = {factor.name: factor.shape for factor in spec.factors}
    if {name: values.shape for name, values in verified.factors.items()} != expected:
        msg = f"adapter {verified.digest[:12]}: its factors are not those of the base's layers."
        raise AdapterIncompatible(msg)
    model = adapt(
        base,
        r=terms.r,
        alpha=terms.lora_alpha,
        target_modules=terms.target_modules,
        rslora=terms.rslora,
        mixture=terms.mixture,
    )
    model.load(verified.factors)
    return model
