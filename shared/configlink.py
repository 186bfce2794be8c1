"""The section ``[link]``: how the adapter and its updates are coded on the way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, Strict

from shared.configtypes import OpenUnit, Section

UpCodec = Literal["fp32", "fp16", "int8", "int4", "topk"]
DownCodec = Literal["fp32", "fp16", "delta"]
ValueCodec = Literal["fp16", "int8", "int4"]
Block = Annotated[int, Strict(), Field(ge=8, le=65536)]


class LinkSection(Section):
    """How an update goes up and the adapter comes down; fp32 is four bytes a number."""

    up: UpCodec = Field(default="fp32", description="code of a client's update")
    down: DownCodec = Field(
        default="fp32",
        description='code of the adapter; "delta" is the change since the public start, in int8',
    )
    block: Block = Field(default=64, description="numbers that share one scale (int8, int4, delta)")
    keep: OpenUnit = Field(default=0.05, description="share of the numbers that topk sends a round")
    values: ValueCodec = Field(default="int8", description="code of the numbers that topk sends")
    entropy: bool = Field(
        default=False, strict=True, description="pack what is coded with zlib where that is shorter"
    )

    @property
    def feeds_back(self) -> bool:
        """Tell whether a client keeps what it did not send for its next update."""
        return self.up == "topk"


def link_facts(link: LinkSection) -> dict[str, object]:
    """Return what a summary says about a link: the codes, and what has a part in them."""
    facts: dict[str, object] = {"up": link.up, "down": link.down}
    if link.feeds_back:
        facts |= {"keep": link.keep, "values": link.values}
    if {link.up, link.down} != {"fp32"}:
        facts |= {"block": link.block, "entropy": link.entropy}
    return facts


def link_words(facts: Mapping[str, object]) -> tuple[str, str]:
    """Return the codes up and down in words, from :func:`link_facts`; fp32 where none is said."""
    up = str(facts.get("up", "fp32"))
    if "keep" in facts:
        up = f"{up} {facts['keep']} in {facts['values']}"
    return up, str(facts.get("down", "fp32"))
