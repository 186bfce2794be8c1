"""The loss of an adapter on public text, by which a run may stop under any guarantee.

Guarantee:
    What is read is the released adapter, the frozen base, and text that is public: nothing of a
    client. So the figure is post-processing of the releases and costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from client.data import Record
from client.evaluation import evaluate
from client.tokenization import make_examples
from server.stopping import Judge
from shared.errors import DataFileNotFound, MalformedRow, NoUsableText
from simulations.public_text import public_documents

if TYPE_CHECKING:
    from client.adapter import AdaptedModel
    from shared.config import RunConfig
    from shared.lora import Vector

BUILTIN = "builtin"
# Another stream than those of pre-training, canaries and rare tokens.
_STREAM = 20_290_817


def public_judge(config: RunConfig, model: AdaptedModel, *, base_dir: Path) -> Judge | None:
    """Return what measures an adapter on the scenario's public text; None if it looks at none.

    Args:
        config: the scenario.
        model: the adapted base; what it holds changes with each call.
        base_dir: what relative paths are relative to.

    Raises:
        DataFileNotFound: if the file of public text cannot be read.
        MalformedRow: if it is not UTF-8 text.
        NoUsableText: if nothing in it can be predicted.
    """
    stopping, data = config.stopping, config.data
    if not stopping.used or stopping.on != "public":
        return None
    texts = public_texts(stopping.public_text, stopping.public_documents, base_dir=base_dir)
    records = [Record(text=text) for text in texts]
    examples = make_examples(records, model.base.tokenizer, max_length=data.max_length)
    if not examples:
        msg = f"stopping.public_text={stopping.public_text!r} holds no text."
        raise NoUsableText(msg)

    def judge(vector: Vector) -> float:
        model.load_vector(vector, config.trained_kinds)
        return evaluate(model, examples, batch_size=config.evaluation.batch_size).loss

    return judge


def public_texts(path: str, documents: int, *, base_dir: Path) -> Sequence[str]:
    """Return public documents: invented ones, or the first lines of a file that are not empty.

    Args:
        path: ``"builtin"`` or a file.
        documents: how many at most.
        base_dir: what a relative path is relative to.

    Raises:
        DataFileNotFound: if the file cannot be read.
        MalformedRow: if it is not UTF-8 text.
    """
    if path == BUILTIN:
        return list(islice(public_documents(_STREAM), documents))
    file = base_dir / path
    try:
        with file.open(encoding="utf-8") as stream:
            return list(islice((line.strip() for line in stream if line.strip()), documents))
    except OSError as error:
        msg = f"stopping.public_text: {file.name} cannot be read ({error.strerror})."
        raise DataFileNotFound(msg) from error
    except UnicodeDecodeError as error:
        msg = f"stopping.public_text: {file.name} is not UTF-8 text."
        raise MalformedRow(msg) from error
