"""Scores of membership attacks, each from published work, each higher for a likelier member.

* reference, zlib, lowercase: Carlini et al., "Extracting Training Data from Large Language Models"
  (2021). The reference is the base model, which an adapter always has at hand.
* Min-K%: Shi et al., "Detecting Pretraining Data from Large Language Models" (2024).
* Min-K%++: Zhang et al., "Min-K%++: Improved Baseline for Detecting Pre-Training Data from Large
  Language Models" (2025).
* RMIA: Zarifzadeh, Liu and Shokri, "Low-Cost High-Power Membership Inference Attacks" (2024).
* LiRA: Carlini et al., "Membership Inference Attacks From First Principles" (2022).

Where the publications score a non-member higher the sign is turned; natural logarithms throughout.
"""

from __future__ import annotations

import math
import zlib

import numpy as np
from scipy import special

from server.audit.protocol import Floats
from server.audit.target import Reading
from shared import validate
from shared.errors import AuditError, InvalidValue

PRIMARY = "reference"
"""The score of natural texts that was chosen beforehand: the base is a well-matched reference."""
PRIMARY_OF_CANARIES = "loss"
"""The score of canaries that was chosen beforehand.

Drawn from one generator, they are comparable as they are; what the base thinks of each adds noise.
"""
SCORES = (PRIMARY, PRIMARY_OF_CANARIES, "zlib", "lowercase", "min-k", "min-k++", "rmia")
"""Every score of the membership audit."""

LOWEST_SHARE = 0.2
"""Share of a text's tokens, the least likely ones, that Min-K% looks at."""
RMIA_A = 0.3
"""How the reference probability of offline RMIA is made up; the default of its authors."""
RMIA_GAMMA = 1.0
_LEAST_STDDEV = 1e-30


def mean_log_probability(reading: Reading) -> float:
    """Return the mean log-probability of a scored token, nats: minus the loss.

    Raises:
        AuditError: for a reading without tokens.
    """
    return float(_tokens(reading).mean())


def reference(tuned: Reading, base: Reading) -> float:
    """Return how much likelier the adapter makes a text than the base does, nats per text."""
    return float(_tokens(tuned).sum() - _tokens(base).sum())


def zlib_ratio(reading: Reading, text: str) -> float:
    """Return the mean log-probability over the compressed size of the text, in bytes."""
    size = len(zlib.compress(text.encode("utf-8", errors="surrogatepass")))
    return mean_log_probability(reading) / size


def lowercase(reading: Reading, lowered: Reading) -> float:
    """Return the logarithm of ``perplexity(lower(x)) / perplexity(x)``."""
    return mean_log_probability(reading) - mean_log_probability(lowered)


def min_k(reading: Reading, *, share: float = LOWEST_SHARE) -> float:
    """Return the mean log-probability of the least likely tokens, at least one of them."""
    return _lowest_mean(_tokens(reading), share)


def standardised(reading: Reading) -> Floats:
    """Return ``(log p - mean) / stddev`` of every token, as Min-K%++ defines them.

    Mean and standard deviation are of the log-probability of a token drawn from the model itself.
    Where the model is uniform, or certain, there is no spread and every outcome is the expected
    one: 0.
    """
    own = _tokens(reading)
    flat = ~(reading.spread > 0)
    return np.where(flat, 0.0, (own - reading.expected) / np.where(flat, 1.0, reading.spread))


def min_k_plus(reading: Reading, *, share: float = LOWEST_SHARE) -> float:
    """Return the mean of the lowest standardised log-probabilities, at least one of them."""
    return _lowest_mean(standardised(reading), share)


def likelihood_ratio(probability: Floats, references: Floats, *, a: float = RMIA_A) -> Floats:
    """Return RMIA's ``P(x | model) / P(x)`` with references that never saw x.

    ``P(x)`` is approximated offline by ``((1 + a) P_out(x) + (1 - a)) / 2``, where ``P_out`` is
    the mean over the reference models. As that mixes probabilities with constants, these are
    probabilities per token (the geometric mean over a text), which do not vanish with its length.

    Args:
        probability: under the model under attack, within [0, 1], shape ``(n,)``.
        references: under reference models, shape ``(models, n)``.
        a: within [0, 1]; 1 trusts the references alone.

    Raises:
        InvalidValue: if a number is out of range, or shapes do not fit.
    """
    if not 0 <= a <= 1:
        msg = f"a={a!r}, expected a number in [0, 1]."
        raise InvalidValue(msg)
    if references.ndim != 2 or references.shape[1:] != probability.shape or not len(references):
        msg = f"references.shape={references.shape}, expected (models, {probability.size})."
        raise InvalidValue(msg)
    both = np.concatenate([probability, references.ravel()])
    if not bool(np.all((both >= 0) & (both <= 1))):
        msg = "a probability is outside [0, 1] or not a number."
        raise InvalidValue(msg)
    prior = ((1 + a) * references.mean(axis=0) + (1 - a)) / 2
    # Both are 0 only if a = 1 and nobody gives x any probability; then there is no evidence.
    ratio: Floats = np.divide(probability, prior, out=np.ones_like(probability), where=prior > 0)
    return ratio


def rmia(ratios: Floats, population: Floats, *, gamma: float = RMIA_GAMMA) -> Floats:
    """Return the share of the population that each text dominates: ``LR(x) / LR(z) > gamma``.

    Args:
        ratios: :func:`likelihood_ratio` of the texts in question, shape ``(n,)``.
        population: the same of texts that are known to be no members and are not in question.
        gamma: by how much a text has to be likelier.

    Returns:
        Shares in [0, 1], shape ``(n,)``. With ``gamma = 1`` this orders texts as ``ratios`` does,
        in as many steps as the population has texts.

    Raises:
        InvalidValue: without a population, or if gamma is not positive.
    """
    validate.positive(gamma=gamma)
    if not population.size:
        msg = "population is empty, expected texts to compare with."
        raise InvalidValue(msg)
    below = np.searchsorted(np.sort(gamma * population), ratios, side="left")
    return np.asarray(below / population.size, dtype=np.float64)


def logit_scaled(log_probability: Floats) -> Floats:
    """Return LiRA's ``log(p / (1 - p))`` from ``log p``, without losing p close to 1.

    Raises:
        InvalidValue: unless every log-probability is below 0.
    """
    if not bool(np.all(log_probability < 0)):
        msg = "a log-probability is not below 0."
        raise InvalidValue(msg)
    return np.asarray(log_probability - np.log(-np.expm1(log_probability)), dtype=np.float64)


def lira(confidence: Floats, with_it: Floats, without_it: Floats) -> Floats:
    """Return LiRA's log-likelihood ratio with shadow models that saw a text and that did not.

    Args:
        confidence: :func:`logit_scaled` under the model under attack, shape ``(n,)``.
        with_it: the same under shadow models trained on the text, shape ``(models, n)``.
        without_it: under shadow models that were not.

    Returns:
        ``log N(x; in) - log N(x; out)``, shape ``(n,)``; means and (maximum likelihood) standard
        deviations are per text.

    Raises:
        InvalidValue: if a shape does not fit or there are fewer than two models on a side.
    """
    inside, outside = _moments(with_it, confidence), _moments(without_it, confidence)
    return _log_normal(confidence, *inside) - _log_normal(confidence, *outside)


def lira_offline(confidence: Floats, without_it: Floats) -> Floats:
    """Return LiRA's ``1 - P(Z > confidence)`` with shadow models that did not see a text.

    Raises:
        InvalidValue: as :func:`lira`.
    """
    mean, stddev = _moments(without_it, confidence)
    return np.asarray(special.ndtr((confidence - mean) / stddev), dtype=np.float64)


def _tokens(reading: Reading) -> Floats:
    """Return the log-probabilities of a reading that has some."""
    if not reading.log_probability.size:
        msg = "a reading has no token, expected at least one."
        raise AuditError(msg)
    return reading.log_probability


def _lowest_mean(values: Floats, share: float) -> float:
    """Return the mean of the lowest share of values, at least one."""
    if not 0 < share <= 1:
        msg = f"share={share!r}, expected a number in (0, 1]."
        raise InvalidValue(msg)
    count = max(1, math.floor(share * values.size + 1e-9))
    return float(np.sort(values)[:count].mean())


def _moments(shadows: Floats, confidence: Floats) -> tuple[Floats, Floats]:
    """Return mean and standard deviation per text over shadow models."""
    if shadows.ndim != 2 or shadows.shape[1:] != confidence.shape or not len(shadows) >= 2:
        msg = f"shadows.shape={shadows.shape}, expected (2 or more models, {confidence.size})."
        raise InvalidValue(msg)
    return shadows.mean(axis=0), np.maximum(shadows.std(axis=0), _LEAST_STDDEV)


def _log_normal(x: Floats, mean: Floats, stddev: Floats) -> Floats:
    """Return the log-density of a Gaussian, but for a constant."""
    return np.asarray(-0.5 * ((x - mean) / stddev) ** 2 - np.log(stddev), dtype=np.float64)
