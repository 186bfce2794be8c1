"""Per-example gradients of several tensors, taken together for norms and sums."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

# Values of all examples that are turned into float64 at once: they stay in a core's own cache.
_AT_ONCE = 1 << 15


class SideBySide:
    """Per-example gradients of several tensors as the columns of one float64 matrix, in pieces.

    One tensor after the other costs more in calls than in arithmetic, all at once more in memory.
    A tensor that is held transposed is taken as it is held, and only its sum is turned.

    Args:
        samples: each ``(B, ...)``; says shapes and order for all that follow.
    """

    def __init__(self, samples: Sequence[torch.Tensor]) -> None:
        self._shapes = [sample.shape[1:] for sample in samples]
        self._turned = [
            sample.dim() == 3 and not sample.is_contiguous() and sample.mT.is_contiguous()
            for sample in samples
        ]
        self._pieces: list[list[int]] = []
        room = 0
        for index, sample in enumerate(samples):
            if room < sample.numel():
                self._pieces.append([])
                room = _AT_ONCE
            self._pieces[-1].append(index)
            room -= sample.numel()

    def joined(self, samples: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Yield float64 matrices of B rows."""
        for piece in self._pieces:
            columns = [
                (samples[index].mT if self._turned[index] else samples[index]).flatten(1)
                for index in piece
            ]
            yield torch.cat(columns, dim=1).double()

    def squared_norms(self, samples: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return each example's squared L2 norm over all tensors, accumulated in float64."""
        norms = [torch.linalg.vecdot(joined, joined) for joined in self.joined(samples)]
        return torch.stack(norms).sum(dim=0)

    def zeros(self, device: torch.device) -> list[torch.Tensor]:
        """Return what :meth:`split` takes, filled with zeros."""
        sizes = [sum(self._shapes[index].numel() for index in piece) for piece in self._pieces]
        return [torch.zeros(size, dtype=torch.float64, device=device) for size in sizes]

    def split(self, sums: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return one tensor for each that was joined.

        Args:
            sums: one vector for each matrix, or several of them as rows, ``(n, columns)``.

        Returns:
            Without the batch dimension, or with n in its place.
        """
        found = []
        for piece, total in zip(self._pieces, sums, strict=True):
            sizes = [self._shapes[index].numel() for index in piece]
            for index, part in zip(piece, torch.split(total, sizes, dim=-1), strict=True):
                shape, many = self._shapes[index], part.shape[:-1]
                turned = self._turned[index]
                found.append(
                    part.view(*many, *shape[::-1]).mT if turned else part.view(*many, *shape)
                )
        return found


def silence(samples: Sequence[torch.Tensor], finite: torch.Tensor) -> None:
    """Set the gradients of examples that are not finite to zero, in place.

    Args:
        samples: each ``(B, ...)``.
        finite: whether each example's gradient is, bool, ``(B,)``.
    """
    if not bool(finite.all()):
        for sample in samples:
            sample[~finite] = 0.0
