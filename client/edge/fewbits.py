"""Frozen weights in few bits inside a traced step, for runtimes without such products.

A constant matrix is replaced by its codes and scales wherever it is multiplied or looked up, and
is made float again at each of these places: forwards and again backwards, so that no more than one
layer's matrix exists in float at a time. Both passes read the same codes, so the gradient is
exactly that of the model with rounded weights.

int8 has one scale a row, int4 one for 32 neighbours of a row. Two int4 codes share a byte: of a
column of the matrix's left half the low four bits, of one of its right half the high ones. They are
taken apart by ``floor(byte / 16)``, for want of shifts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import Argument

_ATEN = torch.ops.aten
_SMALLEST = 512  # elements; what is smaller stays as it is
_BLOCK = 32
_SAME = {_ATEN.detach.default, _ATEN.alias.default, _ATEN.lift_fresh_copy.default}


@dataclass(frozen=True, slots=True)
class _Use:
    """A place where a matrix is multiplied with, as it is or transposed, or looked up."""

    node: Node
    transposed: bool


@dataclass(frozen=True, slots=True)
class _Rows:
    """A matrix in int8: ``codes * scale`` with a scale for each row, kept as ``(1, rows)``."""

    codes: str
    scale: str

    def product(self, graph: Graph, left: Argument, *, transposed: bool) -> Node:
        """Multiply by the matrix; scaling the vectors costs less than scaling the matrix."""
        scale = graph.get_attr(self.scale)
        if not transposed:
            left = graph.call_function(_ATEN.mul.Tensor, (left, scale))
        codes = _floats(graph, graph.get_attr(self.codes))
        if not transposed:
            return graph.call_function(_ATEN.mm.default, (left, codes))
        turned = graph.call_function(_ATEN.t.default, (codes,))
        found = graph.call_function(_ATEN.mm.default, (left, turned))
        return graph.call_function(_ATEN.mul.Tensor, (found, scale))

    def lookup(self, graph: Graph, ids: Argument) -> Node:
        """Return rows of the matrix."""
        scales = graph.call_function(_ATEN.t.default, (graph.get_attr(self.scale),))
        rows = graph.call_function(_ATEN.embedding.default, (graph.get_attr(self.codes), ids))
        of_each = graph.call_function(_ATEN.embedding.default, (scales, ids))
        return graph.call_function(_ATEN.mul.Tensor, (_floats(graph, rows), of_each))


@dataclass(frozen=True, slots=True)
class _Blocks:
    """A matrix in int4, two codes a byte, with a scale for every block of a row."""

    packed: str
    scale: str
    shape: tuple[int, int]

    def product(self, graph: Graph, left: Argument, *, transposed: bool) -> Node:
        """Multiply by the matrix."""
        rows, columns = self.shape
        call = graph.call_function
        both = _floats(graph, graph.get_attr(self.packed))
        high = call(_ATEN.floor.default, (call(_ATEN.mul.Tensor, (both, 1 / 16)),))
        low = call(_ATEN.sub.Tensor, (both, call(_ATEN.mul.Tensor, (high, 16.0))))
        codes = call(_ATEN.cat.default, ([low, high], 1))
        codes = call(_ATEN.sub.Tensor, (codes, 8.0))
        blocks = call(_ATEN.view.default, (codes, [rows, columns // _BLOCK, _BLOCK]))
        scaled = call(_ATEN.mul.Tensor, (blocks, graph.get_attr(self.scale)))
        matrix = call(_ATEN.view.default, (scaled, [rows, columns]))
        if transposed:
            matrix = call(_ATEN.t.default, (matrix,))
        return call(_ATEN.mm.default, (left, matrix))


def quantise_graph(
    graph: GraphModule, *, bits: int, skip: Callable[[str], bool] = lambda _: False
) -> int:
    """Keep the constant matrices of a traced step in few bits.

    A matrix is taken if every use of it is a product or a look-up. Tables that are looked up, and
    matrices whose rows 32 does not divide, are kept in int8 where int4 is asked for.

    Args:
        graph: changed in place.
        bits: 8 or 4.
        skip: tells by its name whether a constant stays as it is.

    Returns:
        How many matrices were taken.
    """
    taken = 0
    for name, nodes in _matrices(graph).items():
        uses = [] if skip(name) else [use for node in nodes for use in _uses(node)]
        if not uses or not all(_known(use) for use in uses):
            continue
        weight, plain = attrgetter(name)(graph), name.replace(".", "_")
        looked_up = any(use.node.target is _ATEN.embedding.default for use in uses)
        few = bits == 4 and not looked_up and weight.shape[1] % _BLOCK == 0
        kept = _blocks(graph, plain, weight) if few else _rows(graph, plain, weight)
        for use in uses:
            _replace(graph.graph, use, kept)
        taken += 1
    graph.graph.eliminate_dead_code()
    _forget_unused(graph)
    graph.recompile()
    return taken


def _matrices(graph: GraphModule) -> dict[str, list[Node]]:
    """Return where each constant matrix is read, under one name where layers share it."""
    places: dict[str, list[Node]] = {}
    names: dict[int, str] = {}
    for node in graph.graph.nodes:
        if node.op != "get_attr":
            continue
        value = attrgetter(str(node.target))(graph)
        if _is_matrix(value):
            name = names.setdefault(value.data_ptr(), str(node.target))
            places.setdefault(name, []).append(node)
    return places


def _forget_unused(graph: GraphModule) -> None:
    """Drop constants that nothing reads any more."""
    alive = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"}
    for owner, module in list(graph.named_modules()):
        for leaf in [*module._parameters, *module._buffers]:
            if f"{owner}.{leaf}".lstrip(".") not in alive:
                delattr(module, leaf)


def _is_matrix(value: object) -> bool:
    """Tell whether a constant is a matrix that is worth it."""
    if not isinstance(value, torch.Tensor) or value.dtype != torch.float32:
        return False
    return value.dim() == 2 and value.numel() >= _SMALLEST


def _uses(node: Node, *, transposed: bool = False) -> list[_Use]:
    """Return where a matrix ends up, through transpositions."""
    found = []
    for user in node.users:
        if user.target in _SAME:
            found += _uses(user, transposed=transposed)
        elif _turns(user):
            found += _uses(user, transposed=not transposed)
        else:
            sides = [position for position, given in enumerate(user.args) if given is node]
            first = 0 if user.target is _ATEN.embedding.default else len(user.args) - 1
            plain = sides == [first] and node not in user.kwargs.values()
            found.append(_Use(user, transposed) if plain else _Use(node, transposed))
    return found


def _turns(node: Node) -> bool:
    """Tell whether a node transposes a matrix."""
    if node.target is _ATEN.t.default:
        return True
    if node.target is _ATEN.permute.default:
        return list(node.args[1]) == [1, 0]  # type: ignore[arg-type]
    axes = {0, 1}, {-2, -1}
    return node.target is _ATEN.transpose.int and set(node.args[1:]) in axes


def _known(use: _Use) -> bool:
    """Tell whether a use can be written with codes."""
    node = use.node
    if node.target is _ATEN.embedding.default:
        return not use.transposed
    return node.target in {_ATEN.mm.default, _ATEN.addmm.default} and not node.kwargs


def _replace(graph: Graph, use: _Use, kept: _Rows | _Blocks) -> None:
    """Write one use with codes."""
    node = use.node
    with graph.inserting_before(node):
        if isinstance(kept, _Rows) and node.target is _ATEN.embedding.default:
            found = kept.lookup(graph, node.args[1])
        else:
            *bias, left, _ = node.args
            found = kept.product(graph, left, transposed=use.transposed)
            if bias:
                found = graph.call_function(_ATEN.add.Tensor, (found, bias[0]))
    node.replace_all_uses_with(found)
    graph.erase_node(node)


def _floats(graph: Graph, node: Node) -> Node:
    """Return a node's values in float32."""
    return graph.call_function(_ATEN._to_copy.default, (node,), {"dtype": torch.float32})


def _rows(graph: GraphModule, name: str, weight: torch.Tensor) -> _Rows:
    """Round a matrix to int8."""
    value = weight.detach()
    scale = value.abs().amax(1, keepdim=True).clamp_min(1e-8) / 127
    graph.register_buffer(f"{name}_codes", (value / scale).round().to(torch.int8))
    graph.register_buffer(f"{name}_scale", scale.t().contiguous())
    return _Rows(f"{name}_codes", f"{name}_scale")


def _blocks(graph: GraphModule, name: str, weight: torch.Tensor) -> _Blocks:
    """Round a matrix to int4, -8 to 7."""
    rows, columns = weight.shape
    blocks = weight.detach().reshape(rows, columns // _BLOCK, _BLOCK)
    # The largest by magnitude gets -8, which no other code's mirror image does.
    at = blocks.abs().argmax(2, keepdim=True)
    scale = blocks.gather(2, at) / -8
    scale = torch.where(scale.abs() < 1e-8, torch.full_like(scale, 1e-8), scale)
    codes = ((blocks / scale).round().clamp(-8, 7) + 8).to(torch.uint8).reshape(rows, columns)
    low, high = codes[:, : columns // 2], codes[:, columns // 2 :]
    graph.register_buffer(f"{name}_codes", low + 16 * high)
    graph.register_buffer(f"{name}_scale", scale)
    return _Blocks(f"{name}_codes", f"{name}_scale", (rows, columns))
