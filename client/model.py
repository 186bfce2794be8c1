"""The frozen base model: found, checked, loaded, and fingerprinted.

Only safetensors are read (a pickle can run code), no code from a model's repository is ever run,
and a checkpoint that lacks weights is refused instead of being completed with random ones.
"""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from client.basedigest import base_digest, feed, weight_files
from client.compressed import check_manifest
from client.encoders import Classifier, is_head, load_classifier, require_unquantised
from client.families import Family, family_of
from client.frozenproduct import take_products
from client.int4 import check_orders
from client.lean import without_quantizers
from client.quantization import (
    check_compute_dtype,
    check_quantization,
    finish_quantized,
    loading_options,
    quantized_storage,
    require_quantizer,
)
from client.torchaoint8 import is_int8_weight_only
from shared.adaptermethod import VECTOR
from shared.errors import ConflictingSettings, ModelNotFound, TokenizerMissing, UnsupportedModel
from shared.lora import plain_name

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_WANTED = ("*.json", "*.safetensors", "*.model", "*.txt")


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModel:
    """A frozen base model with its tokenizer.

    Attributes:
        model: the transformers model; every parameter frozen, in evaluation mode.
        tokenizer: the tokenizer of the same folder, with a padding token.
        digest: SHA-256 of the source checkpoint, the same for every quantisation.
        name: the folder's name or the hub id, never a full path.
        family: ``model_type``, a key of :data:`client.families.FAMILIES`.
        quantization: ``"none"`` (float32), or another of :mod:`client.quantization`.
        head: name of the dense layer that classifies; "" for a language model.
        compute_dtype: of products with the frozen weights; see :mod:`client.frozenproduct`.
        identities: see :class:`shared.lora.AdapterSpec`.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    digest: str
    name: str
    family: str
    quantization: str
    head: str = ""
    identities: tuple[tuple[str, int], ...] = ()
    compute_dtype: str = "float32"


def load_base(
    base: str,
    *,
    quantization: str = "none",
    revision: str | None = None,
    device: str = "cpu",
    cache_dequantized: bool = False,
    labels: int = 0,
    compute_dtype: str = "float32",
) -> BaseModel:
    """Load a base model from a local folder or a hub id, frozen and in evaluation mode.

    Args:
        base: path of a transformers folder, or an id such as ``"owner/name"``.
        quantization: ``"none"`` (float32), ``"int8"``, ``"torchao-int8"``, ``"int4"`` or ``"nf4"``.
        revision: branch, tag or commit of a hub id; a folder has none.
        device: where the model lives, ``"cpu"`` or ``"cuda"``.
        cache_dequantized: keep dequantised weights beside the quantised ones; changes speed and
            memory only (see :mod:`client.quantization`).
        labels: load an encoder that tells so many classes apart; 0 is a language model.
        compute_dtype: of products with quantised weights, ``"float32"`` or ``"bfloat16"`` (see
            :mod:`client.frozenproduct`).

    Returns:
        The model, its tokenizer and its fingerprint.

    Raises:
        ModelNotFound: if there is no such folder or id, or it holds no whole checkpoint.
        TokenizerMissing: if there is no tokenizer beside the weights.
        UnsupportedModel: if the architecture or its files cannot be used; says what is needed.
        ConflictingSettings: if a stored quantisation is not the one asked for, or a folder is given
            a revision.
        BaseModelMismatch: if the folder is not what its own manifest names.
    """
    check_quantization(quantization)
    check_compute_dtype(quantization, compute_dtype)
    folder, name = find_base(base, revision)
    config = _read_config(folder, name)
    family = family_of(config, classifies=labels > 0)
    files = weight_files(folder, name)
    stored = _stored_quantization(config, name)
    if stored not in {"none", quantization}:
        msg = f"Model {name!r} is stored as {stored}, found model.quantization={quantization!r}."
        raise ConflictingSettings(msg, hint=f"Set model.quantization to {stored!r}.")
    if not any((folder / file).is_file() for file in _TOKENIZER_FILES):
        msg = f"Model folder {name!r} has no tokenizer, expected tokenizer.json beside the weights."
        raise TokenizerMissing(msg, hint="Save the tokenizer there with save_pretrained.")
    digest = base_digest([folder / "config.json", *files])
    check_manifest(folder, digest)
    require_quantizer(quantization)
    with quiet(), without_quantizers():
        tokenizer = _load_tokenizer(folder, name)
        if labels:
            require_unquantised(quantization, stored)
            classifier = load_classifier(folder, name, labels=labels, device=device)
        else:
            classifier = Classifier(_load_weights(folder, name, quantization, stored, device))
    model = classifier.model
    check_orders(model)
    finish_quantized(model, quantization)
    if quantization != "none":
        take_products(model, half=compute_dtype == "bfloat16", cache=cache_dequantized)
    _check_vocabulary(model, tokenizer, family, name)
    return BaseModel(
        model=model,
        tokenizer=tokenizer,
        digest=digest,
        name=name,
        family=family.model_type,
        quantization=quantization,
        head=classifier.head,
        identities=classifier.identities,
        compute_dtype=compute_dtype,
    )


def frozen_digest(model: torch.nn.Module) -> str:
    """Return the SHA-256 of every frozen tensor in memory.

    Covers parameters, buffers (also the ones that are never saved) and the scales and codebooks of
    quantised layers; adapters are left out, and PEFT's wrapping does not change it. Compared before
    and after training: equal digests mean that the base did not move.

    Args:
        model: a base model, or a PEFT model around one.
    """
    digest = hashlib.sha256(b"fedslm frozen 1\n")
    for name, tensor in sorted(_frozen_tensors(model), key=lambda item: item[0]):
        plain = tensor.detach().cpu().contiguous()
        feed(digest, json.dumps([name, str(plain.dtype), list(plain.shape)]).encode())
        feed(digest, plain.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep progress bars, advice and third-party deprecations off stderr while loading.

    transformers' and bitsandbytes' loggers stay at "error" afterwards: their advice comes while the
    model runs, and is about settings that are chosen here. Our own warnings are not touched.
    """
    import transformers

    library_logging: Any = transformers.logging
    library_logging.set_verbosity_error()
    library_logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        yield


def find_base(base: str, revision: str | None = None) -> tuple[Path, str]:
    """Return the folder of a base model, downloading a hub id, and its public name.

    Raises:
        ModelNotFound: if there is no such folder or id.
        ConflictingSettings: if a folder is given a revision.
    """
    path = Path(base).expanduser()
    if base and path.is_dir():
        if revision is not None:
            msg = f"model.revision={revision!r} with the local folder {path.name!r}, expected none."
            raise ConflictingSettings(msg, hint="A folder is what it is; its digest names it.")
        return path, path.resolve().name
    if not base or base.startswith((".", "/", "~")) or path.exists() or base.count("/") > 1:
        msg = f"Model folder {path.name!r} does not exist, or is no folder."
        raise ModelNotFound(msg, hint="Give a transformers folder, a hub id, or 'demo'.")
    return _download(base, revision), base


def _download(hub_id: str, revision: str | None) -> Path:
    """Fetch (or find in the cache) the files of a hub id; return their folder."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=list(_WANTED)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        where = f" at revision {revision!r}" if revision else ""
        msg = (
            f"Model {hub_id!r}{where} is neither a local folder nor reachable on the hub "
            f"({type(error).__name__})."
        )
        hint = "Check the name and the network, or give the path of a local folder."
        raise ModelNotFound(msg, hint=hint) from error


def _read_config(folder: Path, name: str) -> dict[str, Any]:
    """Return the parsed ``config.json``."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except OSError as error:
        msg = f"Model folder {name!r} has no readable config.json."
        raise ModelNotFound(msg, hint="Expected a folder that save_pretrained wrote.") from error
    except ValueError as error:
        msg = f"config.json of model {name!r} is not valid JSON."
        raise UnsupportedModel(msg) from error
    if not isinstance(config, dict):
        msg = f"config.json of model {name!r} is not a JSON object."
        raise UnsupportedModel(msg)
    return config


def stored_quantization(folder: Path) -> str:
    """Return how a folder's checkpoint is quantised; ``"none"`` if it is not.

    Raises:
        ModelNotFound: if there is no ``config.json``.
        UnsupportedModel: for a storage that cannot be read.
    """
    return _stored_quantization(_read_config(folder, folder.name), folder.name)


def _stored_quantization(config: dict[str, Any], name: str) -> str:
    """Return how the checkpoint itself is quantised; ``"none"`` if it is not."""
    stored = config.get("quantization_config")
    if not isinstance(stored, dict):
        return "none"
    if stored.get("load_in_8bit"):
        return "int8"
    if stored.get("load_in_4bit") and stored.get("bnb_4bit_quant_type") == "nf4":
        return "nf4"
    if is_int8_weight_only(stored):
        return "torchao-int8"
    method = stored.get("quant_method", "unknown")
    if method == "fedslm-int4":
        return "int4"
    known = "int8, int4, nf4 or torchao"
    msg = f"Model {name!r} is stored with quant_method={method!r}, expected {known}."
    hint = "Use the unquantised checkpoint and set model.quantization."
    if method in {"gptq", "awq"}:
        hint = "Convert it once: fedslm base convert FOLDER --out DIR."
    if method == "torchao":
        hint = "Of torchao's, Int8WeightOnlyConfig with a scale a row is read."
    raise UnsupportedModel(msg, hint=hint)


def _load_tokenizer(folder: Path, name: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer and make sure that it can pad."""
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        msg = f"The tokenizer of model {name!r} cannot be loaded ({type(error).__name__})."
        raise TokenizerMissing(msg, hint="Save it again with save_pretrained.") from error
    if tokenizer.pad_token_id is None and tokenizer.eos_token is not None:
        # Padded positions carry no label and come after the text, so any token will do.
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _load_weights(
    folder: Path, name: str, quantization: str, stored: str, device: str
) -> PreTrainedModel:
    """Load the weights in float32 or quantised; every one must be in the checkpoint."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    options = loading_options(quantization, device)
    read: dict[str, Any] = {}
    if stored == "torchao-int8":
        from client.torchaostore import reading_config

        read = {"config": reading_config(folder, name)}
    elif stored == "int4":
        from client.int4store import register

        register()
    elif stored != "none":
        options.pop("quantization_config")
    loader: Any = AutoModelForCausalLM
    try:
        model, report = loader.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
            **read,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        msg = f"The weights of model {name!r} cannot be loaded ({type(error).__name__})."
        raise UnsupportedModel(
            msg, hint="Check that config.json and weights belong together."
        ) from error
    lacking = sorted(report.get("missing_keys", ())) or sorted(report.get("mismatched_keys", ()))
    if lacking:
        msg = (
            f"The checkpoint of model {name!r} lacks {len(lacking)} weights, such as {lacking[0]}."
        )
        raise UnsupportedModel(msg, hint="Expected a checkpoint with a language-model head.")
    if not options:
        model.to(device)
    model.requires_grad_(False)
    model.config.use_cache = False
    return model.eval()  # type: ignore[no-any-return]


def _check_vocabulary(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, family: Family, name: str
) -> None:
    """Require that every token of the tokenizer has an embedding."""
    embeddings: Any = model.get_input_embeddings()
    rows = int(embeddings.weight.shape[0])
    if not len(tokenizer) <= rows:
        msg = (
            f"The tokenizer of model {name!r} ({family.model_type}) has {len(tokenizer)} tokens, "
            f"the model embeds {rows}."
        )
        raise UnsupportedModel(msg, hint="Expected the tokenizer that the model was trained with.")


def _frozen_tensors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every frozen tensor under the base model's own name."""
    for prefix, module in model.named_modules():
        if ".lora_" in f".{prefix}" or f".{VECTOR}." in f".{prefix}." or is_head(module):
            continue
        dotted = f"{prefix}." if prefix else ""
        for name, tensor in (
            *module.named_parameters(recurse=False),
            *module.named_buffers(recurse=False),
            *quantized_storage(module),
        ):
            yield plain_name(dotted + name), tensor
