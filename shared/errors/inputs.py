"""What is wrong with training data and base models: codes 60 to 79."""

from __future__ import annotations

from shared.errors.root import FedSLMError


class DataError(FedSLMError):
    """Training data cannot be used."""

    code = "data"
    exit_code = 60


class DataFileNotFound(DataError):
    """A data file does not exist or cannot be read."""

    code = "data-file-not-found"
    exit_code = 61


class MalformedRow(DataError):
    """A row cannot be parsed; names file, line and column, never the content."""

    code = "malformed-row"
    exit_code = 62


class NoUsableText(DataError):
    """A client has no text left to train on."""

    code = "no-usable-text"
    exit_code = 63


class ModelError(FedSLMError):
    """A base model cannot be used."""

    code = "model"
    exit_code = 70


class ModelNotFound(ModelError):
    """The base model is neither built in, nor a folder, nor reachable on a hub."""

    code = "model-not-found"
    exit_code = 71


class TokenizerMissing(ModelError):
    """The base model folder has no tokenizer."""

    code = "tokenizer-missing"
    exit_code = 72


class UnsupportedModel(ModelError):
    """The architecture or a module of it is not supported; says what would be needed."""

    code = "unsupported-model"
    exit_code = 73


class BaseModelMismatch(ModelError):
    """The frozen base changed or is not the one that was announced."""

    code = "base-model-mismatch"
    exit_code = 74
