"""Server optimizers against torch's, with the mean update as the negative gradient."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from server.optimizer import ServerOptimizer
from shared.config import ServerSection
from shared.errors import InvalidValue

ROUNDS, SIZE = 12, 7


def updates() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(SIZE) for _ in range(ROUNDS)]


def ours(settings: ServerSection) -> np.ndarray:
    optimizer = ServerOptimizer(settings, rounds=ROUNDS, size=SIZE)
    vector = np.zeros(SIZE, dtype=np.float32)
    for number, mean in enumerate(updates(), start=1):
        vector = optimizer.step(vector, mean, number)
    return vector


def torchs(optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter) -> np.ndarray:
    for mean in updates():
        parameter.grad = torch.from_numpy(-mean)
        optimizer.step()
    return parameter.detach().numpy()


def test_mean_and_momentum_equal_torchs_sgd() -> None:
    for name, momentum in (("mean", 0.0), ("momentum", 0.7)):
        parameter = torch.nn.Parameter(torch.zeros(SIZE, dtype=torch.float64))
        theirs = torchs(torch.optim.SGD([parameter], lr=0.3, momentum=momentum), parameter)
        settings = ServerSection(
            optimizer=name,  # type: ignore[arg-type]
            learning_rate=0.3,
            momentum=momentum,
        )
        assert np.allclose(ours(settings), theirs, atol=1e-5)


def test_adam_equals_torchs() -> None:
    parameter = torch.nn.Parameter(torch.zeros(SIZE, dtype=torch.float64))
    theirs = torchs(torch.optim.Adam([parameter], lr=0.1, betas=(0.8, 0.95), eps=1e-3), parameter)
    settings = ServerSection(
        optimizer="adam", learning_rate=0.1, momentum=0.8, second_momentum=0.95, adaptivity=1e-3
    )
    assert np.allclose(ours(settings), theirs, atol=1e-5)


def test_schedules_start_at_the_rate_and_fall() -> None:
    for name, middle in (("constant", 1.0), ("linear", 0.5), ("cosine", 0.5)):
        settings = ServerSection(schedule=name, learning_rate=2.0)  # type: ignore[arg-type]
        optimizer = ServerOptimizer(settings, rounds=10, size=1)
        assert optimizer.learning_rate(1) == pytest.approx(2.0)
        assert optimizer.learning_rate(6) == pytest.approx(2.0 * middle)
        assert optimizer.learning_rate(10) > 0


def test_a_restored_optimizer_goes_on_as_if_nothing_happened() -> None:
    settings = ServerSection(optimizer="adam")
    whole = ServerOptimizer(settings, rounds=4, size=2)
    first = ServerOptimizer(settings, rounds=4, size=2)
    a = b = np.zeros(2, dtype=np.float32)
    for number in (1, 2):
        mean = np.array([1.0, -math.pi]) * number
        a, b = whole.step(a, mean, number), first.step(b, mean, number)
    second = ServerOptimizer(settings, rounds=4, size=2)
    second.restore(first.state(), first.steps)
    mean = np.array([0.5, 0.25])
    assert np.array_equal(whole.step(a, mean, 3), second.step(b, mean, 3))
    with pytest.raises(InvalidValue, match="optimizer state"):
        ServerOptimizer(ServerSection(), rounds=1, size=2).restore(first.state(), 2)
