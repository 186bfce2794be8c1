"""Prepares a device for the native client: what it cannot make without Python, and its limits.

``python -m client.native.prepare HOME SCENARIO OUT`` reads the folder of an enrolled device and a
scenario that its owner agrees to, and writes a folder for ``fedslm-native``: the records as tokens,
the first factors, and ``client.conf`` with the limits of the owner's policy. Everything in it is
pinned by digest; another scenario needs another folder.
"""

from __future__ import annotations

import hashlib
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from client.edge.program import TOKENIZER, StepManifest, load_step
from client.edge.terms import require_step_for
from client.edge.tokens import StepTokenizer
from client.home import DeviceHome
from client.localexamples import local_examples
from client.node import LocalSource
from client.policy import ClientPolicy
from shared.configfile import load_config, parse_json
from shared.errors import ConflictingSettings, FedSLMError, PolicyRefused, UsageError
from shared.lora import initial_factors
from shared.privacy.events import NeighboringRelation
from shared.privatefiles import create_private, make_private_folder, read_private

if TYPE_CHECKING:
    from client.examples import Example
    from shared.config import RunConfig

CONFIG: Final = "client.conf"
_MAGIC: Final = b"FSLMTOK1"
_MODES: Final = ("example", "client-central")


def prepare(home: DeviceHome, config: RunConfig, out: Path) -> Path:
    """Write a folder for the native client.

    Args:
        home: an enrolled device whose base is an exported step for ExecuTorch.
        config: the scenario that its owner agrees to; the device answers no other.
        out: a new folder, readable by its owner alone.

    Returns:
        The file that ``fedslm-native`` is started with.

    Raises:
        ConflictingSettings: if the step or the native client cannot do the scenario.
        PolicyRefused: if the policy does not allow it, or asks for what the native client lacks.
        FedSLMError: if something cannot be read or written.
    """
    node, policy = home.config, ClientPolicy.load(home.policy)
    if node.runtime != "executorch" or node.step is None or node.data is None:
        msg = (
            f"The device has runtime {node.runtime!r}, expected 'executorch' with data and a step."
        )
        raise ConflictingSettings(msg, hint="fedslm export step --runtime executorch, then enroll.")
    step = Path(node.base).absolute()
    manifest = load_step(step, digest=node.step)
    require_step_for(config, manifest)
    limits = _limits(policy, config, manifest)
    index = node.client_index or 0
    tokenizer: Any = StepTokenizer(step / TOKENIZER, manifest)
    source = LocalSource(path=Path(node.data), config=config)
    train, _ = local_examples(source.client(index), config, tokenizer)
    factors = manifest.adapter.flatten(initial_factors(manifest.adapter, config.adapter_seed))
    files = {
        "examples.tok": tokens_file(train),
        "factors.f32": factors.astype("<f4").tobytes(),
        "node.key": read_private(home.key),
        "ca.crt": home.ca.read_bytes(),
    }
    said: dict[str, object] = {
        "server": node.fleet,
        "ca": "ca.crt",
        "key": "node.key",
        "client_index": index,
        "step": step,
        "step_digest": manifest.digest,
        "factors": "factors.f32",
        "factors_digest": hashlib.sha256(files["factors.f32"]).hexdigest(),
        "examples": "examples.tok",
        "state": "state",
        "config_digest": config.digest(),
        **limits,
        "poll_seconds": node.poll_seconds,
        "heartbeat_seconds": node.heartbeat_seconds,
    }
    make_private_folder(out)
    for name, data in files.items():
        create_private(out / name, data)
    text = "".join(f"{name} = {value}\n" for name, value in said.items())
    create_private(out / CONFIG, text.encode())
    return out / CONFIG


def tokens_file(examples: Sequence[Example]) -> bytes:
    """Write examples as the native client reads them; all numbers are little-endian.

    Eight bytes of magic, the number of examples, and for each its length, its ids and its labels:
    32 bits each.
    """
    parts = [_MAGIC, struct.pack("<I", len(examples))]
    for example in examples:
        rows = np.concatenate([example.ids, example.labels]).astype("<i4")
        parts += [struct.pack("<I", example.ids.size), rows.tobytes()]
    return b"".join(parts)


def _limits(policy: ClientPolicy, config: RunConfig, manifest: StepManifest) -> dict[str, object]:
    """Return the owner's limits for one mode, or refuse what the native client would not keep."""
    mode = config.privacy.mode
    budget = policy.example if mode == "example" else policy.client
    reasons = {
        f"mode {mode!r}": mode in policy.modes and mode in _MODES,
        "the base model": manifest.base_digest in policy.base_models,
        "the number of rounds": config.run.rounds <= policy.max_rounds,
        "aggregation other than 'ffa'": config.policy == "ffa" and "ffa" in policy.aggregation,
        "another rank or scale of the step": (manifest.adapter.r, manifest.adapter.lora_alpha)
        == (config.lora.r, config.lora.alpha),
        "factors other than B that train": manifest.trained == "B",
        "two budgets at once": len(policy.budgets) == 1 and budget is not None,
        "answering again": policy.max_repeats == 0,
    }
    for reason, holds in reasons.items():
        if not holds:
            msg = f"The policy and the native client do not agree on {reason}."
            raise PolicyRefused(msg, hint="docs/native.md says what it does; or use a Python node.")
    if budget is None or budget.neighboring_relation is not NeighboringRelation.ADD_OR_REMOVE_ONE:
        msg = "The native client counts add-or-remove-one alone."
        raise PolicyRefused(msg, hint="Use a Python node.")
    found: dict[str, object] = {
        "mode": mode,
        "max_rounds": policy.max_rounds,
        "max_epsilon": budget.max_epsilon,
        "delta": budget.delta,
        "min_noise_multiplier": budget.min_noise_multiplier,
        "rehearsal": "yes" if policy.seeded_noise else "no",
    }
    if policy.server_key is not None:
        found["server_key"] = policy.server_key
    if mode == "example":
        most = budget.max_sampling_probability
        found["max_sampling_probability"] = 1.0 if most is None else most
    return found


def _scenario(path: Path) -> RunConfig:
    """Read a scenario: TOML, or the JSON that a server says."""
    if path.suffix == ".json":
        return parse_json(path.read_text(encoding="utf-8"))
    return load_config(path).config


def main() -> None:
    """Run the command."""
    try:
        if len(sys.argv) != 4:
            msg = "Expected HOME SCENARIO OUT."
            raise UsageError(msg)
        home, scenario, out = map(Path, sys.argv[1:])
        sys.stdout.write(f"{prepare(DeviceHome.open(home), _scenario(scenario), out)}\n")
    except FedSLMError as error:
        sys.stderr.write(f"{error.code}: {error.message}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
