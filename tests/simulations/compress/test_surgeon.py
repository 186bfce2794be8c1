"""The solver against closed forms, and against numpy that works out one column at a time."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

from client.int4 import dequantize_int4, quantize_int4
from shared.errors import InvalidValue
from simulations.compress.pruning import wanda
from simulations.compress.surgeon import DAMPING, inverse_factor, prune, quantize, smallest


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(width: int, seed: int = 0) -> torch.Tensor:
    """A Gram matrix of inputs that depend on one another."""
    x = random(400, width, seed=seed) @ random(width, width, seed=seed + 1)
    return (x.t() @ x).double()


def loss(change: torch.Tensor, gram: torch.Tensor) -> float:
    off = change.double()
    return float(((off @ gram) * off).sum())


@pytest.mark.parametrize("columns", [32, 40, 96])
def test_gptq_with_uncorrelated_inputs_is_rounding_to_nearest(columns: int) -> None:
    weight = random(7, columns)
    for gram in (torch.eye(columns), torch.diag(1 + torch.arange(columns).double())):
        codes, scales = quantize(weight, inverse_factor(gram))
        nearest, same = quantize_int4(weight)
        assert torch.equal(codes, nearest)
        assert torch.equal(scales, same)


def test_the_factor_is_of_the_inverse() -> None:
    """Against numpy's inverse of the damped matrix."""
    gram = correlated(12).numpy()
    factor = inverse_factor(torch.from_numpy(gram)).numpy()
    assert np.allclose(np.tril(factor, -1), 0)
    damped = gram + DAMPING * np.diag(gram).mean() * np.eye(12)
    assert np.allclose(factor.T @ factor, np.linalg.inv(damped), rtol=1e-8)


def test_an_input_that_was_never_seen_breaks_nothing() -> None:
    gram = correlated(8)
    gram[3] = gram[:, 3] = 0.0
    for matrix in (gram, torch.zeros(8, 8)):
        assert bool(torch.isfinite(inverse_factor(matrix)).all())


def test_gptq_lowers_the_error_of_the_outputs() -> None:
    weight, gram = random(24, 64), correlated(64, seed=3)
    codes = quantize(weight, inverse_factor(gram))
    fitted = loss(dequantize_int4(*codes, 64) - weight, gram)
    nearest = loss(dequantize_int4(*quantize_int4(weight), 64) - weight, gram)
    assert fitted < 0.5 * nearest


def test_what_is_left_after_pruning_is_the_best_for_its_zeros() -> None:
    """One weight goes: the optimal brain surgeon's closed form, by numpy's least squares."""
    gram = correlated(6, seed=5)
    damped = gram + DAMPING * gram.diagonal().mean() * torch.eye(6)
    weight = random(1, 6, seed=9)
    # The first column goes: all others are after it, so the greedy order is the exact answer.
    weight[0, 0] = 1e-3
    found = prune(weight, inverse_factor(gram), sparsity=1 / 6)
    assert found[0, 0] == 0
    rest = slice(1, 6)
    shift = np.linalg.solve(damped[rest, rest].numpy(), damped[rest, 0].numpy())
    expected = weight[0, rest].double().numpy() + float(weight[0, 0]) * shift
    assert np.allclose(found[0, rest].numpy(), expected, rtol=1e-5)


def test_sparsegpt_with_uncorrelated_inputs_only_sets_zeros() -> None:
    """Scores are then w^2 h: numpy picks the same half, and nothing else moves."""
    weight, sizes = random(5, 48, seed=2), 1 + torch.arange(48).double()
    found = prune(weight, inverse_factor(torch.diag(sizes)), sparsity=0.5)
    damped = sizes + DAMPING * sizes.mean()
    scores = (weight.double() ** 2 * damped).numpy().reshape(-1)
    goes = np.zeros(scores.size, dtype=bool)
    goes[np.argsort(scores, kind="stable")[: scores.size // 2]] = True
    expected = np.where(goes.reshape(5, 48), 0.0, weight.numpy())
    assert np.array_equal(found.numpy(), expected)


@pytest.mark.parametrize("pattern", [None, (2, 4)])
def test_wanda_takes_the_smallest_products(pattern: tuple[int, int] | None) -> None:
    """Against enumerating every pair of a group of four, or sorting every row."""
    weight, gram = random(6, 16, seed=4), correlated(16, seed=6)
    scores = (weight.abs() * gram.diagonal().sqrt()).double().numpy()
    found = wanda(weight, gram, 0.5, pattern).numpy()
    width = 16 if pattern is None else 4
    for row in range(6):
        for start in range(0, 16, width):
            part = scores[row, start : start + width]
            zeros = np.flatnonzero(found[row, start : start + width] == 0)
            if pattern is None:
                assert set(zeros) == set(np.argsort(part)[: width // 2])
            else:
                best = min(combinations(range(4), 2), key=lambda two: part[list(two)].sum())
                assert tuple(zeros.tolist()) == best
    kept = found != 0
    assert np.array_equal(found[kept], weight.numpy()[kept])


def test_two_of_every_four_go() -> None:
    weight, gram = random(9, 64, seed=7), correlated(64, seed=8)
    found = prune(weight, inverse_factor(gram), pattern=(2, 4))
    assert bool(((found.view(-1, 4) == 0).sum(dim=1) == 2).all())
    plain = weight.clone().view(-1, 4)
    plain[smallest(plain.abs(), 0.5)] = 0.0
    assert loss(found - weight, gram) < loss(plain.view_as(weight) - weight, gram)


def test_rows_that_do_not_divide_into_fours_are_refused() -> None:
    with pytest.raises(InvalidValue, match="no multiple of 4"):
        prune(random(2, 10), torch.eye(10).double(), pattern=(2, 4))
    with pytest.raises(InvalidValue, match="no multiple of 4"):
        wanda(random(2, 10), torch.eye(10), 0.5, (2, 4))
