"""A student with fewer blocks, trained on public text to say what its teacher says.

The loss is ``a CE + (1 - a) T^2 KL(teacher || student)`` with a = 0.5 and T = 1. The student starts
as the teacher without its least influential blocks. Every step's rows are a function of the text
and the step, so that an interrupted distillation goes on to the same weights.
"""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)

from shared.canonical import canonical_json
from shared.errors import NotResumable
from simulations.compress.depth import blocks_to_keep, influences, keep_blocks
from simulations.compress.protocol import Compressed, Work

TEMPERATURE, MIX = 1.0, 0.5
_RATE, _WARM_UP, _BATCH, _CHECKPOINT = 1e-3, 10, 8, 25
_FILE = "student.safetensors"


@dataclass(frozen=True, slots=True)
class Distil:
    """Knowledge distillation into a model of fewer blocks."""

    about: str = "fewer blocks, trained on public text to follow the whole model (resumable)"
    calibrates: bool = True
    reads: tuple[str, ...] = ("rows", "length", "layers", "steps")

    def compress(self, work: Work) -> Compressed:
        """Train the student."""
        teacher = work.base.model
        student, kept = _student(work)
        optimizer = torch.optim.AdamW(student.parameters(), lr=_RATE, weight_decay=0.0)
        identity = _identity(work, kept)
        done = _restore(student, optimizer, work.scratch, identity)
        for step in range(done, work.settings.steps):
            rows = work.text.rows(
                work.base.tokenizer,
                "training",
                count=_BATCH,
                length=work.settings.length,
                index=step,
            )
            for group in optimizer.param_groups:
                group["lr"] = _RATE * _factor(step, work.settings.steps)
            optimizer.zero_grad(set_to_none=True)
            distillation_loss(student, teacher, rows).backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            if (step + 1) % _CHECKPOINT == 0:
                _keep(student, optimizer, work.scratch, identity, step + 1)
            work.step(step + 1, work.settings.steps)
        parameters = {"kept": kept, "temperature": TEMPERATURE, "mix": MIX, "batch": _BATCH}
        return Compressed(
            model=student.eval().requires_grad_(False), storage="none", parameters=parameters
        )


def distillation_loss(student: Any, teacher: Any, rows: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
    """Return the loss of a student on rows of tokens, mean per predicted token, in nats.

    Args:
        student: a causal language model that trains.
        teacher: one of the same vocabulary.
        rows: int64, ``(B, T)``.
    """
    with torch.no_grad():
        wanted = teacher(input_ids=rows).logits[:, :-1].flatten(0, 1)
    said = student(input_ids=rows).logits[:, :-1].flatten(0, 1)
    truth = F.cross_entropy(said, rows[:, 1:].flatten())
    apart = F.kl_div(
        F.log_softmax(said / TEMPERATURE, dim=-1),
        F.log_softmax(wanted / TEMPERATURE, dim=-1),
        log_target=True,
        reduction="batchmean",
    )
    return MIX * truth + (1 - MIX) * TEMPERATURE**2 * apart


def _student(work: Work) -> tuple[Any, list[int]]:
    """Return the student before its first step, and which blocks it was given."""
    scores = influences(work.base.model, work.calibration())
    kept = blocks_to_keep(scores, work.settings.layers)
    student = copy.deepcopy(work.base.model)
    keep_blocks(student, kept)
    return student.requires_grad_(True).train(), kept


def _factor(step: int, steps: int) -> float:
    """Return the part of the peak rate at a step: a linear warm-up, then half a cosine."""
    if step < _WARM_UP:
        return (step + 1) / _WARM_UP
    return 0.5 * (1 + math.cos(math.pi * step / max(1, steps)))


def _identity(work: Work, kept: list[int]) -> str:
    """Return what a checkpoint must agree with to be gone on from."""
    said = {"base": work.base.digest, "text": work.text.digest, "kept": kept}
    return canonical_json({**said, **asdict(work.settings)})


def _keep(student: Any, optimizer: Any, folder: Path, identity: str, step: int) -> None:  # noqa: ANN401
    """Write a checkpoint that is whole or not there."""
    from safetensors.torch import save_file

    tensors = {}
    for name, parameter in student.named_parameters():
        tensors[f"model/{name}"] = parameter.detach().clone()
        for key, value in optimizer.state[parameter].items():
            tensors[f"{key}/{name}"] = value.clone()
    partial = folder / f"{_FILE}.partial"
    save_file(tensors, partial, metadata={"identity": identity, "step": str(step)})
    partial.replace(folder / _FILE)


def _restore(student: Any, optimizer: Any, folder: Path, identity: str) -> int:  # noqa: ANN401
    """Go on from a checkpoint, if there is one; return the steps that are done.

    Raises:
        NotResumable: if it belongs to another distillation.
    """
    from safetensors import safe_open

    path = folder / _FILE
    if not path.is_file():
        return 0
    with safe_open(path, "pt") as stream:
        said = stream.metadata()
        if said.get("identity") != identity:
            msg = "The checkpoint in the output folder belongs to another distillation."
            raise NotResumable(msg, hint="Give the same options, or another --out.")
        with torch.no_grad():
            for name, parameter in student.named_parameters():
                parameter.copy_(stream.get_tensor(f"model/{name}"))
                optimizer.state[parameter] = {
                    key: stream.get_tensor(f"{key}/{name}")
                    for key in ("step", "exp_avg", "exp_avg_sq")
                }
    return int(said["step"])
