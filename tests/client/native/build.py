"""The native client, built once for a session, and a device that it is prepared for."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import gettempdir, mkdtemp

import numpy as np

import client.native
from client.edge.export import export_step
from client.edge.program import StepManifest
from client.edge.terms import terms_of
from client.fleet.objects import Tree, object_id
from client.fleet.records import decode, encode
from client.fleet.worker import from_flower, to_flower
from client.home import DeviceHome, NodeConfig
from client.keyring import load_identity
from client.native.prepare import prepare_home
from shared.canonical import sha256_hex
from shared.config import RunConfig
from shared.lora import Vector
from shared.pki import Authority, new_key
from shared.privatefiles import make_private_folder, replace_private
from shared.roster import write_roster
from shared.wire import Records, encode_instruction
from simulations.assemble import load_model
from tests.integration.device import BASE, Device, Round, make_device
from tests.integration.edgestep import edge_scenario

SOURCE = Path(client.native.__file__).parent
HERE = Path(__file__).parent


@lru_cache(maxsize=2)
def binary(*variables: str) -> Path:
    """Compile the client as its Makefile does; warnings are errors.

    Several processes of one session share what was built from the same sources.
    """
    files = sorted([*(SOURCE / "src").iterdir(), SOURCE / "Makefile", *HERE.glob("*.cpp")])
    said = "|".join([sys.executable, str(os.getuid()), *variables, *map(_digest, files)])
    out = Path(gettempdir()) / f"fedslm-native-{sha256_hex(said)[:16]}"
    make_private_folder(out)
    settings = [f"PYTHON={sys.executable}", f"OUT={out}", "CXXFLAGS=-O1", *variables]
    with (out / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run(
            ["make", "-s", *settings], cwd=SOURCE, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    return out / "fedslm-native"


def sanitized() -> Path:
    """Compile the client without ExecuTorch, with the sanitizers, as everything but steps needs."""
    engine = HERE / "noengine.cpp"
    return binary(f"ENGINE={engine}", "SANITIZE=address,undefined")


def _digest(path: Path) -> str:
    return sha256_hex(path.read_bytes())


@lru_cache(maxsize=1)
def exported() -> tuple[Path, StepManifest]:
    """Export the embedded model's step for ExecuTorch, without a clip inside."""
    config = edge_scenario("example")
    model = load_model(config, base_dir=BASE)
    terms = terms_of(config)
    model.set_trainable(terms.trained)
    folder = Path(mkdtemp(prefix="fedslm-step-")) / "step"
    done = export_step(model, folder, length=terms.length, max_grad_norm=None, runtime="executorch")
    return folder, done.manifest


def said(config: RunConfig, **changes: object) -> dict[str, object]:
    """Return what ``node.toml`` of a device with the step says."""
    folder, manifest = exported()
    return {
        "name": "phone",
        "client_index": 0,
        "fleet": "localhost:9092",
        "control": "localhost:9093",
        "base": str(folder),
        "runtime": "executorch",
        "step": manifest.digest,
        **changes,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Native:
    """A device that the native client answers for, and the same one for Python."""

    device: Device
    conf: Path

    def changed(self, **values: object) -> None:
        """Change the owner's limits."""
        lines = dict(line.split(" = ", 1) for line in self.conf.read_text().splitlines())
        lines |= {key: str(value) for key, value in values.items()}
        replace_private(self.conf, "".join(f"{k} = {v}\n" for k, v in lines.items()).encode())

    def node(self) -> dict[str, str | int | float | bool]:
        """Return the configuration of a Python node with the same step."""
        folder, manifest = exported()
        step = {"base-path": str(folder), "runtime": "executorch", "step-digest": manifest.digest}
        return {**self.device.node(), **step}

    def ask(
        self, asked: Round, *, kind: str = "train", lines: list[str] | None = None
    ) -> tuple[int, str, Records | None]:
        """Send a round to the binary; return its exit code, what it says, and its answer."""
        folder = self.device.folder
        lines = question(asked) if lines is None else lines
        for name, text in {
            "scenario.json": asked.scenario,
            "plan.json": asked.plan,
            "question": "\n".join(lines),
        }.items():
            (folder / name).write_text(text, encoding="utf-8")
        words = [kind, *(str(folder / n) for n in ("scenario.json", "plan.json", "question"))]
        return run("answer", str(self.conf), *words)


def run(*words: str, client: Path | None = None) -> tuple[int, str, Records | None]:
    """Run the binary."""
    done = subprocess.run(
        [str(client or binary()), *words], capture_output=True, text=True, check=False, timeout=120
    )
    printed = done.stdout.split()
    # What ExecuTorch says about the processor is not ours.
    told = "".join(f"{x}\n" for x in done.stderr.splitlines() if " executorch:" not in x)
    if done.returncode or words[0] != "answer":
        return done.returncode, told + done.stdout, None
    return 0, told, records_of(printed)


def records_of(lines: Sequence[str]) -> Records:
    """Read a content as the binary writes it."""
    objects = {object_id(raw): raw for raw in map(bytes.fromhex, lines[1:])}
    return to_flower(decode(Tree(root=lines[0], contents=objects)))


def question(asked: Round) -> list[str]:
    """Return an instruction as the binary reads it from a file."""
    return lines_of(encode_instruction(asked.instruction))


def lines_of(records: Records) -> list[str]:
    """Return a content as the binary reads it: its root's name, and every object."""
    tree = encode(from_flower(records))
    return [tree.root, *(content.hex() for content in tree.contents.values())]


def make_native(
    folder: Path, config: RunConfig, *, peers: Mapping[int, bytes] | None = None, **policy: object
) -> Native:
    """Enroll a device without a server, and prepare it for the native client.

    Args:
        folder: an empty one.
        config: the scenario.
        peers: keys of the other clients of secure sums; the device is client 0.
        **policy: changes of the owner's policy.
    """
    device = make_device(folder, config.privacy.mode, **policy)
    home = folder / "home"
    make_private_folder(home)
    replace_private(home / "node.key", new_key())
    replace_private(home / "ca.crt", Authority.create("test", days=2).certificate)
    replace_private(home / "policy.toml", device.policy.read_bytes())
    node = NodeConfig.of(said(config, data=str(device.folder / "notes.jsonl")))
    enrolled = DeviceHome.create(home, node)
    if peers is not None:
        keys = {0: load_identity(enrolled.state).public_key, **peers}
        (home / "roster.json").write_text(write_roster(keys), encoding="utf-8")
    return Native(device=device, conf=prepare_home(enrolled, config, folder / "native"))


def vector_in(records: Records | None) -> Vector:
    """Return the update of an answer."""
    assert records is not None
    return np.asarray(records["adapter"]["vector"].numpy(), dtype=np.float32)  # type: ignore[union-attr]
