"""What trains of an adapter that is no low-rank product, wherever it is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from client.prompted import Prompted
from client.rescaled import RescaledLayer, rescaled_layers
from client.softprompt import SoftPrompt

if TYPE_CHECKING:
    from peft import PeftModel

    from shared.lora import AdapterSpec


def vectors_of(
    peft_model: PeftModel | Prompted, spec: AdapterSpec
) -> list[RescaledLayer | SoftPrompt]:
    """Return the vectors of IA3, or the prompt; nothing for pairs of factors.

    Args:
        peft_model: as :func:`client.injection.inject` made it.
        spec: of its adapter.
    """
    if spec.method is None:
        return []
    if isinstance(peft_model, Prompted):
        return [peft_model.prompt]
    return [*rescaled_layers(peft_model)]
