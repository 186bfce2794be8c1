"""Which extras bring a package that is not installed."""

from __future__ import annotations

from typing import Final

from shared.errors import MissingDependency

EXTRAS: Final[dict[str, tuple[str, ...]]] = {
    **dict.fromkeys(
        ("bitsandbytes", "huggingface_hub", "opacus", "peft", "torch", "transformers"), ("client",)
    ),
    **dict.fromkeys(("tokenizers",), ("edge", "client")),
    **dict.fromkeys(("onnxruntime",), ("edge", "export")),
    **dict.fromkeys(("executorch", "gguf", "onnx", "onnx_ir", "onnxscript"), ("export",)),
    **dict.fromkeys(("grpc",), ("edge", "client", "server")),
    **dict.fromkeys(
        ("grpc_health", "grpc_reflection", "httpx", "prometheus_client", "starlette", "uvicorn"),
        ("server",),
    ),
    **dict.fromkeys(("flwr_datasets", "matplotlib", "pyarrow"), ("sim",)),
    **dict.fromkeys(("datasets", "lm_eval"), ("eval",)),
    **dict.fromkeys(("phonenumbers", "presidio_analyzer", "spacy"), ("query",)),
    "llama_cpp": ("llama",),
    "psycopg": ("postgres",),
    "ray": ("ray",),
}
"""The extras that bring a module's package, the smallest first."""


def missing(error: ModuleNotFoundError) -> MissingDependency | None:
    """Return what to tell about a module that is not there; None for one that no extra brings."""
    name = (error.name or "").partition(".")[0]
    extras = EXTRAS.get(name)
    if extras is None:
        return None
    lines = " or ".join(f"pip install 'fedslm[{extra}]'" for extra in extras)
    return MissingDependency(f"This needs the package {name}, which is not installed.", hint=lines)
