"""Flower's objects: pieces of a message, each named by the SHA-256 of its bytes.

An object is ``KIND CHILD,CHILD,... LENGTH``, a zero byte, and a body. A message is a tree of five
levels at most, ``Message > RecordDict > record > Array > ArrayChunk``. Nothing here needs numpy: a
node carries objects between its server and its worker without looking into arrays.

Nothing is believed before it is checked: a name is compared with the bytes, a length with what is
there, and children come from the hashed header, never from a list beside it. A tree cannot have a
cycle (an object would have to hold its own hash) nor more levels than there are kinds.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from client.fleet.limits import DEFAULT_LIMITS, Limits
from shared.errors import SchemaMismatch

MESSAGE: Final = "Message"
RECORD_DICT: Final = "RecordDict"
ARRAY_RECORD: Final = "ArrayRecord"
CONFIG_RECORD: Final = "ConfigRecord"
METRIC_RECORD: Final = "MetricRecord"
ARRAY: Final = "Array"
CHUNK: Final = "ArrayChunk"
# What an object of a kind may hold.
_CHILDREN: Final[Mapping[str, frozenset[str]]] = {
    MESSAGE: frozenset({RECORD_DICT}),
    RECORD_DICT: frozenset({ARRAY_RECORD, CONFIG_RECORD, METRIC_RECORD}),
    ARRAY_RECORD: frozenset({ARRAY}),
    ARRAY: frozenset({CHUNK}),
    CONFIG_RECORD: frozenset(),
    METRIC_RECORD: frozenset(),
    CHUNK: frozenset(),
}
_ID: Final = re.compile(r"[0-9a-f]{64}")
_ID_LENGTH: Final = 64
# The longest kind, two spaces, a length of 20 digits.
_HEAD_ROOM: Final = 64

Contents = Mapping[str, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """One object, taken apart.

    Attributes:
        kind: what it is.
        children: names of the objects that it is made of, each once, in order.
        body: the rest; a view of the bytes that were given.
    """

    kind: str
    children: tuple[str, ...]
    body: memoryview = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """A root and all objects under it.

    Attributes:
        root: name of the root.
        contents: every object's bytes by name, children before their parents.
    """

    root: str
    contents: Contents = field(repr=False)

    @property
    def size(self) -> int:
        """Return the bytes of all objects together."""
        return sum(map(len, self.contents.values()))


def is_object_id(name: str) -> bool:
    """Tell whether a text is a SHA-256 in lower-case hexadecimal."""
    return _ID.fullmatch(name) is not None


def object_id(content: bytes) -> str:
    """Return the name of an object: the SHA-256 of its bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def build(kind: str, children: Sequence[str], body: bytes | memoryview) -> bytes:
    """Write an object; children are named once each, in order."""
    return b"".join((f"{kind} {','.join(children)} {len(body)}".encode("ascii"), b"\0", body))


def parse(content: bytes, *, limits: Limits = DEFAULT_LIMITS) -> Parsed:
    """Take an object apart.

    Args:
        content: its bytes; from anywhere.
        limits: how large it may be.

    Raises:
        SchemaMismatch: unless it is written exactly as :func:`build` writes it.
    """
    if len(content) > limits.object_bytes:
        msg = f"An object has {len(content)} bytes, expected at most {limits.object_bytes}."
        raise SchemaMismatch(msg)
    longest = _HEAD_ROOM + (_ID_LENGTH + 1) * limits.objects
    end = content.find(b"\0", 0, longest)
    if end < 0:
        msg = "An object has no header."
        raise SchemaMismatch(msg)
    try:
        kind, named, length = content[:end].decode("ascii").split(" ")
    except ValueError as error:
        msg = "The header of an object has not three fields."
        raise SchemaMismatch(msg) from error
    children = tuple(named.split(",")) if named else ()
    body = memoryview(content)[end + 1 :]
    if kind not in _CHILDREN:
        msg = "An object is of no kind that a message is made of."
        raise SchemaMismatch(msg)
    if not all(map(is_object_id, children)) or len(set(children)) != len(children):
        msg = f"The header of an object of kind {kind} names its children wrongly."
        raise SchemaMismatch(msg)
    if length != str(len(body)):
        msg = f"An object of kind {kind} is not as long as its header says."
        raise SchemaMismatch(msg)
    return Parsed(kind=kind, children=children, body=body)


def collect(
    root: str, kind: str, fetch: Callable[[str], bytes], *, limits: Limits = DEFAULT_LIMITS
) -> Tree:
    """Fetch a root and everything under it, each object once.

    Guarantee:
        Every object is the one that its name or its parent's header says, of a kind that may stand
        there; all together keep the limits. Fetching stops at the first that does not.

    Args:
        root: name of the root.
        kind: what the root must be.
        fetch: returns the bytes of a named object.
        limits: bounds on size and count.

    Raises:
        SchemaMismatch: if an object is not what it should be, or they are too many or too large.
    """
    contents: dict[str, bytes] = {}
    kinds: dict[str, str] = {}
    budget = limits.message_bytes
    level = {root: frozenset({kind})}
    while level:
        below: dict[str, frozenset[str]] = {}
        for name, allowed in level.items():
            if name not in contents:
                content = _fetched(name, fetch)
                budget -= len(content)
                if budget < 0 or len(contents) >= limits.objects:
                    msg = "A message is larger or made of more objects than this node takes."
                    raise SchemaMismatch(msg, hint="Raise max_message_mb in node.toml.")
                parsed = parse(content, limits=limits)
                contents[name], kinds[name] = content, parsed.kind
                may = _CHILDREN[parsed.kind]
                below |= {child: below.get(child, may) & may for child in parsed.children}
            if kinds[name] not in allowed:
                msg = f"An object of kind {kinds[name]} stands where another kind belongs."
                raise SchemaMismatch(msg)
        level = below
    return Tree(root=root, contents=dict(reversed(contents.items())))


def verify(tree: Tree, kind: str, *, limits: Limits = DEFAULT_LIMITS) -> Tree:
    """Check objects that are at hand already; return those that belong to the root.

    Raises:
        SchemaMismatch: as :func:`collect`, or if an object is missing.
    """
    return collect(tree.root, kind, lambda name: _at_hand(tree.contents, name), limits=limits)


def under(tree: Tree, root: str) -> Tree:
    """Return the part of a checked tree under one of its objects."""
    names: dict[str, None] = {}
    level = [root]
    while level:
        names.update(dict.fromkeys(level))
        level = [child for name in level for child in parse(tree.contents[name]).children]
    contents = {name: tree.contents[name] for name in tree.contents if name in names}
    return Tree(root=root, contents=contents)


def walk(tree: Tree) -> Iterator[tuple[str, Parsed]]:
    """Yield each object of a checked tree, taken apart; children before parents."""
    for name, content in tree.contents.items():
        yield name, parse(content)


def _fetched(name: str, fetch: Callable[[str], bytes]) -> bytes:
    """Fetch an object and compare it with its name."""
    content = fetch(name)
    if object_id(content) != name:
        msg = "An object is not the one that its name says."
        raise SchemaMismatch(
            msg, hint="It was changed on the way, or the server's store is broken."
        )
    return content


def _at_hand(contents: Contents, name: str) -> bytes:
    """Return an object that must be there."""
    if name not in contents:
        msg = "An object of a message is missing."
        raise SchemaMismatch(msg)
    return contents[name]
