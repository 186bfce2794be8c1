"""Products with transposed constants: the vectors are turned, the values stay."""

from __future__ import annotations

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from client.edge.turning import turn_vectors

_ATEN = torch.ops.aten


def test_constants_are_multiplied_as_they_lie() -> None:
    generator = torch.Generator().manual_seed(3)
    weight, bias = (torch.randn(size, generator=generator) for size in ((6, 4), (6,)))

    def two(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        plain = torch.mm(x, (2.0 * weight).t()) + torch.addmm(bias, x, weight.t())
        return torch.mm(plain, factor.t())

    given = torch.randn((3, 4), generator=generator), torch.randn((2, 6), generator=generator)
    graph = make_fx(two)(*given)
    assert turn_vectors(graph) == 2
    torch.testing.assert_close(graph(*given), two(*given), rtol=1e-6, atol=1e-6)
    for node in graph.graph.nodes:
        if node.target is _ATEN.t.default:
            assert node.args[0].op != "get_attr"
    assert turn_vectors(graph) == 0
