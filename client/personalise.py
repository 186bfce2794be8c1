"""Steps of its own on a device: from the newest verified adapter to one for this owner alone.

Guarantee:
    None, and none is needed: the adapter is made of the owner's text for the owner, on the owner's
    device. It is written to one private file (:mod:`client.personalstore`) and into no message;
    nothing is charged, because nothing leaves. Losses are for the owner's eyes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from client.adapterrules import AdapterPolicy
from client.adapterstore import AdapterStore
from client.inference import base_folder, device_base_digest
from client.knownruns import known_scenario
from client.node import LocalSource
from client.personalstore import PersonalFacts, PersonalStore
from shared.adapterterms import adapter_terms
from shared.documents import utc_now
from shared.errors import (
    AdapterIncompatible,
    AdapterUntrusted,
    DataFileNotFound,
    FleetError,
    NoUsableText,
    UsageError,
)

if TYPE_CHECKING:
    from client.adapter import AdaptedModel
    from client.adapterfiles import VerifiedAdapter
    from client.examples import Example
    from client.home import DeviceHome
    from shared.config import RunConfig
    from shared.lora import Vector

STEPS = 8
_MIB = 1 << 20

Progress = Callable[[int, int], None]
"""Is told how many steps are done, and of how many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Personalised:
    """What came of it.

    Attributes:
        facts: of the personal adapter.
        kept: whether it was kept; one that is no better on held-out text is not.
        examples: how many the steps were drawn from.
        held_out: how many losses are of.
    """

    facts: PersonalFacts
    kept: bool
    examples: int
    held_out: int

    def to_dict(self) -> dict[str, Any]:
        """Return it in JSON's terms."""
        counts = {"kept": self.kept, "examples": self.examples, "held_out": self.held_out}
        return {**asdict(self.facts), **counts}


def tell_nobody(done: int, steps: int) -> None:
    """Take no note of a step."""
    del done, steps


def personalise(
    home: DeviceHome,
    *,
    steps: int | None = None,
    learning_rate: float | None = None,
    scenario: RunConfig | None = None,
    keep_worse: bool = False,
    progress: Progress = tell_nobody,
) -> Personalised:
    """Make the device's own adapter from the newest verified one, and keep it on the device.

    Text is read, split and cut as in the run that the adapter is from, so that what was held out
    then is held out now.

    Args:
        home: the device.
        steps: local steps; by default the scenario's ``personal.steps``, or 8.
        learning_rate: of these steps; by default the scenario's.
        scenario: of the run that the adapter is from; by default the one that this device took part
            in.
        keep_worse: keep it also where held-out loss is not lower than with the shared adapter.
        progress: is told after each step.

    Raises:
        AdapterUntrusted: if no adapter was fetched, or it does not verify.
        AdapterIncompatible: if it is not an adapter of the scenario's form.
        UsageError: if this device took part in no run of the adapter and no scenario is given, or
            holds an exported step in place of the base.
        DataFileNotFound: if the device has no data file.
        NoUsableText: if there is no text to train on.
        FleetError: if there is too little memory.
    """
    from shared.config import RunConfig

    data = home.config.data
    if data is None or not Path(data).is_file():
        msg = "This device has no data file."
        raise DataFileNotFound(msg, hint="Name it in node.toml: data = ...")
    if home.config.runtime != "torch":
        msg = "This device holds an exported step; personal steps need torch and the base itself."
        raise UsageError(msg, hint="Personalise on a device with runtime torch.")
    verified = _newest(home)
    config = scenario or _scenario_of(home, verified)
    changes = {
        "steps": steps or config.personal.steps or STEPS,
        "learning_rate": learning_rate or config.personal.learning_rate,
    }
    tables = config.model_dump(mode="json")
    tables["personal"] |= changes
    own = RunConfig.model_validate_json(json.dumps(tables))
    model = _load(own, verified, str(base_folder(home.config.base)))
    return _Steps(home, own, model, verified, Path(data)).take(progress, keep_worse=keep_worse)


class _Steps:
    """The steps of a device whose model is loaded."""

    def __init__(
        self,
        home: DeviceHome,
        config: RunConfig,
        model: AdaptedModel,
        verified: VerifiedAdapter,
        data: Path,
    ) -> None:
        self._home = home
        self._config = config
        self._model = model
        self._verified = verified
        self._data = data
        self._index = home.config.client_index or 0

    def take(self, progress: Progress, *, keep_worse: bool) -> Personalised:
        """Train, measure before and after, and keep what came of it."""
        from client.personal import personal_settings, personal_vector
        from shared.seeding import data_rng

        config, model = self._config, self._model
        train, held_out = self._examples()
        model.set_trainable(config.trained_kinds)
        shared = model.read_vector(config.trained_kinds)
        before = self._loss(shared, held_out)
        done = 0

        def stepped() -> None:
            nonlocal done
            done += 1
            progress(done, config.personal.steps)

        settings = personal_settings(config)
        rng = data_rng(config.run.seed, "personal", self._index)
        vector = personal_vector(model, shared, train, settings, rng=rng, on_step=stepped)
        after = self._loss(vector, held_out)
        facts = PersonalFacts(
            adapter=self._verified.digest,
            steps=config.personal.steps,
            learning_rate=config.personal.learning_rate,
            created=utc_now(),
            loss_before=before,
            loss_after=after,
        )
        better = before is None or (after is not None and after < before)
        finite = not held_out or after is not None
        kept = finite and (better or keep_worse)
        if kept:
            PersonalStore(self._home.personal).keep(facts, model.factors())
        return Personalised(facts=facts, kept=kept, examples=len(train), held_out=len(held_out))

    def _examples(self) -> tuple[list[Example], list[Example]]:
        """Return what the device trains on and what it holds out."""
        from client.localexamples import local_examples

        data = LocalSource(path=self._data, config=self._config).client(self._index)
        train, held_out = local_examples(data, self._config, self._model.base.tokenizer)
        if not train:
            msg = "There is no text to train on in this device's data file."
            raise NoUsableText(msg)
        return train, held_out

    def _loss(self, vector: Vector, held_out: Sequence[Example]) -> float | None:
        """Return the held-out loss under trained factors; None if there is no finite one."""
        from client.evaluation import evaluate

        if not held_out:
            return None
        self._model.load_vector(vector, self._config.trained_kinds)
        rows = min(self._config.evaluation.batch_size, self._config.performance.physical_batch)
        loss = evaluate(self._model, held_out, batch_size=rows).loss
        return loss if math.isfinite(loss) else None


def _newest(home: DeviceHome) -> VerifiedAdapter:
    """Return the adapter in use, verified again.

    Raises:
        AdapterUntrusted: if there is none, or it does not verify.
    """
    key = home.config.adapter_key
    hint = "Get it with: fedslm client fetch; a running node does that by itself."
    if key is None:
        msg = "This device knows no key that signs adapters."
        raise AdapterUntrusted(msg, hint="Enroll again to get it.")
    store = AdapterStore(
        home.adapters,
        trusted_key=key,
        base_digest=device_base_digest(home),
        policy=AdapterPolicy.of_owner(home.policy),
    )
    current = store.memory().current
    if current is None:
        msg = "No adapter was fetched yet, so there is nothing to begin at."
        raise AdapterUntrusted(msg, hint=hint)
    return store.load(current)


def _scenario_of(home: DeviceHome, verified: VerifiedAdapter) -> RunConfig:
    """Return the scenario of an adapter's run.

    Raises:
        UsageError: if this device does not know it.
    """
    found = known_scenario(home.state, verified.config_digest)
    if found is None:
        msg = f"This device took part in no run that adapter {verified.digest[:12]} is from, and "
        msg += "does not know how its text was read there."
        raise UsageError(msg, hint="Give the scenario of the run: --scenario FILE")
    return found


def _load(config: RunConfig, verified: VerifiedAdapter, base: str) -> AdaptedModel:
    """Load base and adapter, if there is memory for them.

    Raises:
        AdapterIncompatible: if the scenario's adapter has other factors.
        FleetError: if there is too little memory.
    """
    import torch

    from client.taskmodel import load_adapted
    from client.thrift import read_model_config, thrift_for

    thrift = thrift_for(config, read_model_config(Path(base)), cuda=torch.cuda.is_available())
    config = config.model_copy(update={"performance": thrift.performance})
    _require_memory(config, base)
    model = load_adapted(config, base)
    if thrift.checkpointing:
        model.enable_checkpointing()
    expected = {factor.name: factor.shape for factor in model.spec.factors}
    terms, asked = verified.terms, adapter_terms(config)
    scaled = terms.method == asked.method and (
        # IA3 and prompts have no rank and no scale.
        bool(terms.method)
        or (terms.r, terms.lora_alpha, terms.rslora, terms.mixture)
        == (asked.r, asked.alpha, asked.rslora, asked.mixture)
    )
    shapes = {name: values.shape for name, values in verified.factors.items()}
    if not scaled or shapes != expected:
        msg = f"Adapter {verified.digest[:12]} has other factors than the scenario's adapter."
        raise AdapterIncompatible(msg, hint="Give the scenario of its own run: --scenario FILE")
    model.load(verified.factors)
    return model


def _require_memory(config: RunConfig, base: str) -> None:
    """Refuse before anything is loaded that the estimate says will not fit.

    Raises:
        FleetError: with what is needed and what is free.
    """
    from client.baseshape import read_shape
    from client.machine import available_memory, own_group
    from shared.devicecost import memory_of
    from shared.devicesettings import setup_of

    free = available_memory(group=own_group())
    if free is None or config.performance.device != "cpu":
        return
    terms = adapter_terms(config)
    shape, spec = read_shape(
        base,
        r=terms.r,
        alpha=terms.alpha,
        target_modules=terms.target_modules,
        rslora=terms.rslora,
        mixture=terms.mixture,
        method=terms.method,
        prompt_tokens=terms.prompt_tokens,
    )
    steps = config.clients.model_copy(
        update={"local_steps": config.personal.steps, "local_epochs": None}
    )
    needed = memory_of(shape, spec, setup_of(config.model_copy(update={"clients": steps}))).total
    if not needed <= free:
        msg = f"Steps on this device need about {needed // _MIB} MiB of memory, and "
        msg += f"{free // _MIB} MiB are free."
        raise FleetError(msg, hint="Close other programs, or make the adapter at another time.")
