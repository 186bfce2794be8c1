"""Answers on the device: base model and newest verified adapter, and no query ever leaves.

Everything is read from local folders, and nothing here opens a connection, logs a prompt or keeps
an answer. The newest adapter is verified before it is loaded; if it is refused, the one before it
is used with a warning; if none verifies, nothing answers unless the bare base was asked for.

The same calls answer by torch, by ONNX Runtime and by llama.cpp; which of them, the folder of the
base says: one of transformers, or what ``fedslm export`` wrote. With the demo model alone:

>>> model = LocalModel.load(base="demo", base_only=True)
>>> answer = model.generate("The king", max_tokens=8)
>>> answer.tokens, answer.ended, answer.latency.first_token_seconds > 0
(8, 'length', True)
>>> "".join(model.stream("The king", max_tokens=8)) == answer.text
True
>>> first = answer.text.split()[0]
>>> cut = model.generate("The king", max_tokens=8, stop=[first])
>>> cut.ended, first in cut.text
('stop', False)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from client.adapterrules import AdapterPolicy
from client.answering.adapters import Notes, own_store, store_of, wear_newest, wear_own
from client.answering.opening import Opened, open_base
from client.answering.program import open_adapter
from client.home import DeviceHome, default_home
from client.personalstore import PersonalFacts
from shared.errors import ModelNotFound, UsageError

if TYPE_CHECKING:
    from client.adapter import AdaptedModel
    from client.adapterstore import AdapterStore
    from client.answering.engine import Engine
    from client.generation import Answer
    from client.redaction import Redactor, Session
    from shared.manifest import AdapterManifest

DEMO = "demo"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalModel:
    """A language model on this device. One question at a time; not for several threads.

    Attributes:
        engine: the runtime, with its adapter.
        runtime: its name, "torch", "onnx" or "llama".
        base_digest: of the base model.
        kv_cache: how keys and values are kept between tokens.
        adapter: the manifest of the adapter; None without one.
        warnings: what the user should know (an adapter that was refused, and why).
        personal: the owner's own adapter in place of the shared one; None without it.
    """

    engine: Engine
    runtime: str
    base_digest: str
    kv_cache: str
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
        runtime: str | None = None,
        quantization: str | None = None,
        kv_cache: str | None = None,
        base_only: bool = False,
        policy: AdapterPolicy | None = None,
        warn: Callable[[str], None] | None = None,
        personal: bool = False,
        public_key: str | None = None,
    ) -> LocalModel:
        """Load base and newest verified adapter of an enrolled device, or of folders.

        Args:
            home: the device's folder; the default one if neither base nor store is given.
            base: a transformers folder, "demo", or an export that has the base in it; by default
                what the device was enrolled with.
            store: the verified adapters; by default the device's own.
            runtime: "torch", "onnx" or "llama"; by default what the base's folder is for.
            quantization: with torch, how the base is stored in memory, as
                :func:`client.model.load_base`; by default as it is on disk.
            kv_cache: how keys and values are kept between tokens: "int8" with onnx, if the graph
                was exported so; "q8_0" or "q4_0" with llama.
            base_only: answer without an adapter, and look at none.
            policy: what the owner demands of an adapter; by default what the policy file says.
            warn: is told at once what should be known; the module's logger by default.
            personal: answer with the owner's own adapter (``fedslm client personalise``). One that
                was made on another adapter than the one in use is stale: it is left out with a
                warning, because that adapter may have been withdrawn.
            public_key: answer with the adapter that travelled with the export, signed by this key,
                on a device that is not enrolled.

        Returns:
            The model; loading takes seconds, so keep it.

        Raises:
            AdapterUntrusted: if no adapter verifies, or there is none, and base_only is False; if
                an export is not signed by the key that the device knows.
            AdapterCorrupt: if a file of an export is missing or changed.
            ModelNotFound: if the base is no local folder; nothing is fetched.
            FleetError: if the device is not enrolled.
            UsageError: if a personal adapter is wanted and there is none, or no device to have it;
                if the base's folder is not for this runtime, or the runtime has no such cache.
            MissingDependency: if the runtime is not installed.
        """
        alone = base_only or public_key is not None
        device = _device(home, needed=base is None or (store is None and not alone) or personal)
        own = own_store(device, base_only=alone) if personal else None
        opened = open_base(
            base_folder(str(base if base is not None else _config_base(device))),
            runtime=runtime,
            quantization=quantization,
            kv_cache=kv_cache,
            trusted=_key(device, store, public_key),
        )
        notes = Notes(warn or logger.warning)
        _say_whose(opened, _key(device, store, public_key), notes)
        manifest, facts = None, None
        if public_key is not None and not base_only:
            manifest = _wear_exported(opened, public_key, policy)
        elif not base_only:
            adapters = store or store_of(device, opened.base_digest, policy)
            verified = wear_newest(opened.engine, adapters, opened.base_digest, notes)
            manifest = verified.manifest
            facts = None if own is None else wear_own(own, opened.engine(), verified, notes)
        return cls(
            engine=opened.engine(),
            runtime=opened.runtime,
            base_digest=opened.base_digest,
            kv_cache=opened.kv_cache,
            adapter=manifest,
            warnings=tuple(notes.said),
            personal=facts,
        )

    @property
    def adapted(self) -> AdaptedModel | None:
        """Return torch's base with its adapter; None without one, and with other runtimes."""
        return getattr(self.engine, "adapted", None)

    def stream(
        self,
        prompt: str,
        *,
        max_tokens: int = 128,
        temperature: float = 0.0,
        top_k: int = 50,
        seed: int | None = None,
        stop: Sequence[str] = (),
        chat: bool = False,
    ) -> Iterator[str]:
        """Yield an answer piece by piece; arguments and errors as :meth:`generate`."""
        from client.generation import Generator

        return Generator(engine=self.engine).pieces(
            prompt,
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            seed=seed,
            stop=stop,
            chat=chat,
        )

    def generate(
        self,
        prompt: str,
        *,
        max_tokens: int = 128,
        temperature: float = 0.0,
        top_k: int = 50,
        seed: int | None = None,
        stop: Sequence[str] = (),
        chat: bool = False,
        on_text: Callable[[str], None] | None = None,
    ) -> Answer:
        """Answer a prompt.

        Args:
            prompt: markers such as ``</s>`` in it are text.
            max_tokens: how many tokens are written at most; fewer if the model's window is full.
            temperature: 0 for the likeliest token each time; otherwise tokens are drawn.
            top_k: among how many of the likeliest tokens is drawn.
            seed: of the draws; fresh ones from the operating system without it.
            stop: texts that end the answer and are not part of it.
            chat: ask as a user's turn of the base's chat template, as adapters that were trained
                with ``data.template = "chat"`` know it; markers in the prompt count then.
            on_text: is given each piece of text as it is written: never half a character, and
                nothing of a stop text.

        Returns:
            The text, how many tokens there were, and why it ended.

        Raises:
            InvalidValue: if a number is out of range, or the prompt fills the model's window.
            TokenizerMissing: if the base has no chat template to ask by.
            AdapterCorrupt: if the model gives numbers that are not finite.
        """
        from client.generation import Generator

        return Generator(engine=self.engine).answer(
            prompt,
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            seed=seed,
            stop=stop,
            chat=chat,
            on_text=on_text,
        )

    def generate_redacted(
        self,
        prompt: str,
        *,
        redactor: Redactor | None = None,
        session: Session | None = None,
        on_text: Callable[[str], None] | None = None,
        **options: Any,  # noqa: ANN401  (those of generate)
    ) -> tuple[Answer, dict[str, int]]:
        """Answer a prompt of which the runtime sees no personal data that the redactor finds.

        Args:
            prompt: as :meth:`generate`.
            redactor: finds personal data; the one that ships by default.
            session: of a conversation; a new one by default.
            on_text: is given each piece of the answer, with the personal data back in place.
            options: further arguments of :meth:`generate`.

        Returns:
            The answer with the personal data back in place, and how many pieces of each kind were
            taken out of the prompt.

        Raises:
            MissingDependency: if the extra ``query`` is not installed.
        """
        from client.redaction import RestoringStream, Session, default_redactor

        known = Session() if session is None else session
        found = (redactor or default_redactor()).redact(prompt, known)
        stream = RestoringStream(known)

        def tell(piece: str) -> None:
            if on_text is not None and (restored := stream.push(piece)):
                on_text(restored)

        answer = self.generate(found.text, **options, on_text=tell)
        if on_text is not None and (last := stream.finish()):
            on_text(last)
        return replace(answer, text=known.restore(answer.text).text), found.counts()


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


def device_base_digest(device: DeviceHome) -> str:
    """Return the digest of the base model that a device was enrolled with.

    A device without torch holds an exported step, whose manifest names the base.

    Raises:
        ModelNotFound: if it is no local folder, or a file of it is missing.
        BaseModelMismatch: if the step is not the one that the device was enrolled with.
    """
    folder = base_folder(device.config.base)
    if device.config.runtime != "torch":
        from client.edge.program import load_step

        return load_step(folder, digest=device.config.step).base_digest
    from client.basedigest import base_digest

    return base_digest(folder)


def _device(home: DeviceHome | Path | None, *, needed: bool) -> DeviceHome | None:
    """Return the device's folder, opened if it is needed."""
    if isinstance(home, DeviceHome):
        return home
    if home is None and not needed:
        return None
    return DeviceHome.open(default_home() if home is None else home)


def _config_base(device: DeviceHome | None) -> str:
    """Return the base that a device answers with."""
    if device is None:
        return DEMO
    return device.config.answers or device.config.base


def _key(
    device: DeviceHome | None, store: AdapterStore | None, public_key: str | None
) -> str | None:
    """Return the only key whose signature of an export counts; None if none is known."""
    if public_key is not None:
        return public_key
    if store is not None:
        return store.trusted_key
    return None if device is None else device.config.adapter_key


def _say_whose(opened: Opened, trusted: str | None, notes: Notes) -> None:
    """Say so where nothing tells whether an export is the server's."""
    if opened.program is not None and trusted is None:
        signed = opened.program.signed_by
        whose = "is not signed" if signed is None else f"is signed by {signed[:12]}"
        notes.add(f"The export {whose}: nothing says that it is to be trusted.")


def _wear_exported(
    opened: Opened, public_key: str, policy: AdapterPolicy | None
) -> AdapterManifest:
    """Put the adapter on the base that travelled with it."""
    if opened.program is None:
        msg = "A public key says who signed an export, and the base is none."
        raise UsageError(msg, hint="Give an export: --base FOLDER")
    verified = open_adapter(opened.program, trusted=public_key, policy=policy or AdapterPolicy())
    opened.engine().wear(verified.factors, verified.terms)
    return verified.manifest
