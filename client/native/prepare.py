"""Prepares a device for the native client: what it cannot make without Python, and its limits.

From a scenario that the owner agrees to: the records as tokens, the first factors, and
``client.conf`` with the limits of the owner's policy. Everything in it is pinned by digest; another
scenario needs another folder. Who the device is stands beside it in ``device.conf``: written here
for a device that the Python client enrolled, and by ``fedslm-native enroll`` for one that enrolls
by itself.
"""

from __future__ import annotations

import hashlib
import shutil
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from client.edge.program import TOKENIZER, StepManifest, load_step
from client.edge.terms import require_step_for
from client.edge.tokens import StepTokenizer
from client.home import DeviceHome
from client.keyring import IDENTITY, DeviceKeyring
from client.localexamples import local_examples
from client.native.limits import ROSTER, native_limits
from client.node import LocalSource
from client.policy import ClientPolicy
from shared.errors import ConflictingSettings
from shared.files import disk_errors
from shared.lora import initial_factors
from shared.privatefiles import create_private, make_private_folder, read_private

if TYPE_CHECKING:
    from client.examples import Example
    from shared.config import RunConfig

CONFIG: Final = "client.conf"
DEVICE: Final = "device.conf"
_STEP: Final = "step"
_MAGIC: Final = b"FSLMTOK1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """What the owner of a device names.

    Attributes:
        data: the file with the records.
        step: folder of the exported step, for ExecuTorch.
        policy: the policy file.
        client_index: which client of the population the device speaks for.
    """

    data: Path
    step: Path
    policy: Path
    client_index: int


def prepare_home(home: DeviceHome, config: RunConfig, out: Path) -> Path:
    """Write a folder for the native client of a device that the Python client enrolled.

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
    node = home.config
    if node.runtime != "executorch" or node.step is None or node.data is None:
        msg = (
            f"The device has runtime {node.runtime!r}, expected 'executorch' with data and a step."
        )
        raise ConflictingSettings(msg, hint="fedslm export step --runtime executorch, then enroll.")
    owner = Owner(
        data=Path(node.data),
        step=Path(node.base).absolute(),
        policy=home.policy,
        client_index=node.client_index or 0,
    )
    manifest = load_step(owner.step, digest=node.step)
    pace: dict[str, object] = {
        "poll_seconds": node.poll_seconds,
        "heartbeat_seconds": node.heartbeat_seconds,
    }
    files = _files(owner, config, manifest, step=str(owner.step), pace=pace)
    said: dict[str, object] = {
        "name": node.name,
        "client_index": owner.client_index,
        "server": node.fleet,
        "control": node.control,
        "ca": "ca.crt",
        "key": "node.key",
    }
    files |= {"node.key": read_private(home.key), "ca.crt": home.ca.read_bytes()}
    if home.certificate.exists():
        said["certificate"] = "node.crt"
        files["node.crt"] = read_private(home.certificate)
    secure = ClientPolicy.load(home.policy).secure_aggregation
    if ROSTER in files and secure is not None:
        identity = DeviceKeyring(home.state, secure).identity(owner.client_index)
        files[IDENTITY] = identity.private_bytes()
    if node.adapter_key is not None:
        said["adapter_key"] = node.adapter_key
    return _write(out, {DEVICE: _conf(said), **files})


def prepare_owner(owner: Owner, config: RunConfig, out: Path) -> Path:
    """Write a folder for a device that ``fedslm-native enroll`` enrolled: all of it but who it is.

    The step is copied into it, so that one folder goes to the device; its key never leaves there.

    Args:
        owner: what the owner names.
        config: the scenario that the owner agrees to; the device answers no other.
        out: a new folder, or that of the device if it is here.

    Returns:
        The file that ``fedslm-native`` is started with.

    Raises:
        ConflictingSettings: if the step or the native client cannot do the scenario.
        PolicyRefused: if the policy does not allow it, or asks for what the native client lacks.
        FedSLMError: if something cannot be read or written.
    """
    manifest = load_step(owner.step)
    if manifest.runtime != "executorch":
        msg = f"The step is for {manifest.runtime}, expected executorch."
        raise ConflictingSettings(msg, hint="fedslm export step --runtime executorch")
    files = _files(owner, config, manifest, step=_STEP, pace={})
    make_private_folder(out)
    with disk_errors(out / _STEP):
        shutil.copytree(owner.step, out / _STEP)
    return _write(out, files)


def _files(
    owner: Owner, config: RunConfig, manifest: StepManifest, *, step: str, pace: dict[str, object]
) -> dict[str, bytes]:
    """Return what a device has whoever enrolled it, ``client.conf`` last."""
    require_step_for(config, manifest)
    limits = native_limits(owner.policy, config, manifest)
    tokenizer: Any = StepTokenizer(owner.step / TOKENIZER, manifest)
    source = LocalSource(path=owner.data, config=config)
    train, _ = local_examples(source.client(owner.client_index), config, tokenizer)
    factors = manifest.adapter.flatten(initial_factors(manifest.adapter, config.adapter_seed))
    raw = factors.astype("<f4").tobytes()
    said: dict[str, object] = {
        "client_index": owner.client_index,
        "step": step,
        "step_digest": manifest.digest,
        "factors": "factors.f32",
        "factors_digest": hashlib.sha256(raw).hexdigest(),
        "examples": "examples.tok",
        "state": "state",
        "config_digest": config.digest(),
        **limits,
        **pace,
    }
    files = {"examples.tok": tokens_file(train), "factors.f32": raw}
    secure = ClientPolicy.load(owner.policy).secure_aggregation
    if "roster" in limits and secure is not None:
        files[ROSTER] = secure.read_roster()
    return {**files, CONFIG: _conf(said)}


def _conf(said: dict[str, object]) -> bytes:
    """Write one key a line."""
    return "".join(f"{name} = {value}\n" for name, value in said.items()).encode()


def _write(out: Path, files: dict[str, bytes]) -> Path:
    """Write the files of a folder."""
    make_private_folder(out)
    for name, data in files.items():
        create_private(out / name, data)
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
