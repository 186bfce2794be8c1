"""Transposed products of a traced step that turn the vectors and leave the matrix as it lies.

A linear layer multiplies by the transpose of its weight. ExecuTorch has no strided views: it copies
the matrix into its transpose for every call, which takes a quarter of a step's time. With the
few vectors of one example turned in its place, ``x W^T = (W x^T)^T``, the copies are small.
"""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

_ATEN = torch.ops.aten


def turn_vectors(graph: GraphModule) -> int:
    """Rewrite every product with the transpose of a constant matrix; values stay, up to rounding.

    Args:
        graph: changed in place.

    Returns:
        How many products were rewritten.
    """
    constant: set[Node] = set()
    found = []
    for node in graph.graph.nodes:
        inputs = node.all_input_nodes
        if node.op == "get_attr" or (inputs and constant.issuperset(inputs)):
            constant.add(node)
        elif node.target in {_ATEN.mm.default, _ATEN.addmm.default} and not node.kwargs:
            right = node.args[-1]
            if right in constant and right.target is _ATEN.t.default:
                found.append(node)
    for node in found:
        _turn(graph, node)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return len(found)


def _turn(graph: GraphModule, node: Node) -> None:
    """Rewrite one product."""
    call = graph.graph.call_function
    *bias, left, right = node.args
    with graph.graph.inserting_before(node):
        matrix = right.args[0]  # type: ignore[union-attr]
        product = call(_ATEN.mm.default, (matrix, call(_ATEN.t.default, (left,))))
        turned = call(_ATEN.t.default, (product,))
        if bias:
            turned = call(_ATEN.add.Tensor, (turned, bias[0]))
    node.replace_all_uses_with(turned)
    graph.graph.erase_node(node)
