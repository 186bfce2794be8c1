"""Texts from a gradient: a search over tokens, guided by what LoRA gradients give away.

Three things tell a right beginning of a text from a wrong one, and all are cheap:

* *Row space* (Petrov et al., "DAGER", 2024). Rows of A's gradient lie in the span of a layer's
  inputs, and in a causal model an input at a place depends on the tokens up to it alone. What of
  it lies outside is its misfit, exact while fewer positions than rows left a trace. B's rows do
  the same for ``A x``, while there are fewer positions than r.
* *Match* (Zhu et al., "Deep Leakage from Gradients", 2019; Deng et al., "TAG", 2021): the cosine
  between the gradient of a candidate, beginning or whole, and the one that was seen.
* *Prior* (Balunovic et al., "LAMP", 2022): what the model itself finds likely.

Candidates for a next token come from the directional derivative of its log-probability along the
seen gradient: to first order, how much the update would have pleased that token. A beam grows
texts from the left; then tokens are replaced, moved and swapped as long as that helps, which is
LAMP's discrete half. Its other half, soft tokens optimised by Adam, is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)

from client.losses import Batch, token_losses
from shared.errors import AuditError
from simulations.auditing.rowspaces import fed_by_tokens, inputs_of, row_spaces
from simulations.auditing.searchsettings import SearchSettings

if TYPE_CHECKING:
    from client.adapter import AdaptedModel
    from shared.lora import Vector

_STEP = 0.02
_PRIOR = 0.02
_DONE = 0.9999
_LEAST_GAIN = 1e-4
_STARTS = 1024
# One whole misfit weighs as much as so many standard deviations of gain.
_FIRST = 10.0
_FLOATS = 4_000_000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Scored:
    """Candidates with their gradients.

    Attributes:
        rows: token ids, ``(n, length)``.
        gradients: of the summed loss, ``(n, m)``.
        score: what the search maximises, ``(n,)``.
        cosine: the match alone, ``(n,)``.
    """

    rows: torch.Tensor
    gradients: torch.Tensor
    score: torch.Tensor
    cosine: torch.Tensor

    def best(self, count: int) -> _Scored:
        """Return the best ones, best first."""
        order = self.score.topk(min(count, self.score.numel())).indices
        return _Scored(
            rows=self.rows[order],
            gradients=self.gradients[order],
            score=self.score[order],
            cosine=self.cosine[order],
        )


class TextSearch:
    """Looks for the texts behind one gradient of a model that holds the factors it was taken at.

    The model's factors are moved while it searches and put back after each step.

    Args:
        model: base and adapter; its trainable factors are those that the gradient is of.
        gradient: of the mean loss, in any scale, shape ``(m,)``.
        length: tokens of each text, known ones included; at least 2 more than those.
        known: tokens that every text begins with; may be empty.
        never: tokens that do not stand inside a text, such as padding.
        settings: how hard to try.

    Raises:
        AuditError: for a gradient that is zero or not finite.
    """

    def __init__(
        self,
        model: AdaptedModel,
        gradient: Vector,
        *,
        length: int,
        known: Sequence[int] = (),
        never: Sequence[int] = (),
        settings: SearchSettings | None = None,
    ) -> None:
        norm = float(np.linalg.norm(gradient.astype(np.float64)))
        if not (np.isfinite(norm) and norm > 0):
            msg = "an update is zero or not finite, expected something to invert."
            raise AuditError(msg)
        self._model = model
        self._seen = torch.from_numpy(gradient / np.float32(norm)).to(model.device)
        self._length, self._known = length, tuple(known)
        self._never = list(never)
        self._settings = settings or SearchSettings()
        self._factor_at = _factor_places(model)
        self._spaces = row_spaces(model, self._seen)
        self._first = fed_by_tokens(model, {space.layer for space in self._spaces})
        self._pools: dict[int, torch.Tensor] = {}

    def find(self, texts: int) -> list[tuple[int, ...]]:
        """Return so many texts of the gradient's batch, without their known beginning."""
        if texts > 1:
            self._settings = self._settings.shorter()
        found: list[_Scored] = []
        for _ in range(texts):
            rest = self._sum(found)
            grown = self._grow(rest).best(self._settings.polished)
            found.append(self._best_of(grown, rest))
        if texts > 1:
            # What was found first did not know of the others yet.
            for place in range(texts):
                others = self._sum([one for j, one in enumerate(found) if j != place])
                again = self._score(found[place].rows, others)
                found[place] = self._improve(again, others)
        skipped = len(self._known)
        return [tuple(one.rows[0, skipped:].tolist()) for one in found]

    def _sum(self, found: Sequence[_Scored]) -> torch.Tensor:
        """Return the summed gradients of what is there already."""
        total = torch.zeros_like(self._seen)
        for one in found:
            total += one.gradients[0]
        return total

    def _best_of(self, grown: _Scored, rest: torch.Tensor) -> _Scored:
        """Improve each grown text and return the best."""
        best: _Scored | None = None
        for row in grown.rows:
            found = self._improve(self._score(row[None], rest), rest)
            if best is None or bool(found.score > best.score):
                best = found
            if float(best.cosine) > _DONE:
                break
        if best is None:
            msg = "no text was grown, expected at least one."
            raise AuditError(msg)
        return best

    def _grow(self, rest: torch.Tensor) -> _Scored:
        """Grow texts from the left by a beam search."""
        rows = self._beginnings()
        while True:
            scored = self._score(self._longer(rows), rest).best(self._settings.beams)
            rows = scored.rows
            if rows.shape[1] == self._length:
                return scored

    def _beginnings(self) -> torch.Tensor:
        """Return the known beginning, or every first token that there may be."""
        if self._known:
            return torch.tensor([self._known], device=self._model.device)
        first = torch.arange(self._vocabulary, device=self._model.device)
        misfit = self._pool(0)
        if misfit is not None:
            first = misfit.argsort()
        allowed = ~torch.isin(first, torch.tensor(self._never, device=first.device))
        return first[allowed][:_STARTS, None]

    def _longer(self, rows: torch.Tensor) -> torch.Tensor:
        """Return beginnings that are one token longer."""
        beams, width = self._settings.beams, self._settings.width
        gain, logs = (table[:, -1] for table in self._gain(rows, self._seen))
        spread = torch.where(gain.isfinite(), gain, 0.0).std(dim=1, keepdim=True)
        gain = gain / spread.clamp(min=1e-12)
        hoped = gain + 0.25 * logs
        misfit = self._pool(rows.shape[1])
        if rows.shape[0] > beams:
            # Nothing has been looked at yet but every token for itself.
            if misfit is not None:
                hoped = hoped - _FIRST * (misfit + misfit[rows[:, -1:]])
            picks = hoped.flatten().topk(min(beams * width, hoped.numel())).indices
            return torch.cat(
                [rows[picks // self._vocabulary], (picks % self._vocabulary)[:, None]], dim=1
            )
        few = min(max(1, width // 2), self._vocabulary)
        tokens = [gain.topk(few).indices, hoped.topk(few).indices]
        if misfit is not None and rows.shape[1] < self._length - 1:
            least = misfit.topk(few, largest=False).indices
            tokens.append(least.expand(rows.shape[0], -1))
        picked = torch.cat(tokens, dim=1)
        longer = torch.cat(
            [rows.repeat_interleave(picked.shape[1], dim=0), picked.reshape(-1, 1)], dim=1
        )
        return _distinct(longer)

    def _improve(self, text: _Scored, rest: torch.Tensor) -> _Scored:
        """Move, swap and replace tokens as long as that helps."""
        for _ in range(self._settings.passes):
            before = float(text.score)
            if float(text.cosine) > _DONE:
                break
            text = self._better(text, _moved(text.rows[0], len(self._known)), rest)
            for place in range(len(self._known), self._length):
                text = self._better(text, self._replaced(text, place, rest), rest)
            if float(text.score) - before < _LEAST_GAIN:
                break
        return text

    def _better(self, text: _Scored, rows: torch.Tensor, rest: torch.Tensor) -> _Scored:
        """Return the best of some candidates if it beats the text."""
        found = self._score(rows, rest).best(1)
        return found if bool(found.score > text.score) else text

    def _replaced(self, text: _Scored, place: int, rest: torch.Tensor) -> torch.Tensor:
        """Return the text with other tokens at one place."""
        row, few = text.rows, min(max(1, self._settings.pool // 3), self._vocabulary)
        missing = self._seen - F.normalize(rest + text.gradients[0], dim=0) * text.cosine
        tokens = []
        if place:
            for direction in (self._seen, F.normalize(missing, dim=0)):
                gain, logs = self._gain(row, direction)
                tokens.append(gain[0, place - 1].topk(few).indices)
            tokens.append(logs[0, place - 1].topk(few).indices)
        misfit = self._pool(place)
        if misfit is not None and place < self._length - 1:
            tokens.append(misfit.topk(few, largest=False).indices)
        # A first token predicts nothing itself; without a row space any may stand there.
        picked = torch.unique(torch.cat(tokens)) if tokens else self._beginnings()[:, 0]
        rows = row.repeat(picked.numel(), 1)
        rows[:, place] = picked
        return rows

    def _score(self, rows: torch.Tensor, rest: torch.Tensor) -> _Scored:
        """Score candidates: match, less misfit, and a little of the prior."""
        parts = [self._pieces(chunk) for chunk in torch.split(rows, self._chunk)]
        gradients, logs, misfit = (torch.cat(columns) for columns in zip(*parts, strict=True))
        cosine = F.cosine_similarity(gradients + rest, self._seen[None], dim=1)
        return _Scored(
            rows=rows,
            gradients=gradients,
            score=cosine - misfit + _PRIOR * logs,
            cosine=cosine,
        )

    @property
    def _chunk(self) -> int:
        """Return how many candidates have their gradients at once."""
        return max(8, min(256, _FLOATS // self._seen.numel()))

    @property
    def _vocabulary(self) -> int:
        """Return the number of embeddings."""
        embeddings: Any = self._model.base.model.get_input_embeddings()
        return int(embeddings.weight.shape[0])

    def _pieces(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return gradients, mean log-probability and summed misfit of each row."""
        count = rows.shape[0]
        batch = Batch(ids=rows, labels=rows, attention_mask=torch.ones_like(rows))
        layers = self._model.layers
        try:
            for layer in layers:
                layer.record(count)
            with inputs_of(self._model, {space.layer for space in self._spaces}) as inputs:
                losses, _ = token_losses(self._model.peft_model, batch)
            losses.sum().backward()  # type: ignore[no-untyped-call]
            gradients = torch.cat(
                [layer.samples[kind].flatten(1) for layer, kind in self._factor_at], dim=1
            )
        finally:
            for layer in layers:
                layer.record(0)
        # The last token of a whole text predicts nothing and leaves no trace.
        traced = min(rows.shape[1], self._length - 1)
        misfit = torch.zeros(count, device=rows.device)
        for space in self._spaces:
            misfit += space.misfit(inputs[space.layer])[:, :traced].sum(dim=1)
        mean = -losses.detach().sum(dim=1) / max(1, rows.shape[1] - 1)
        return gradients.detach(), mean, misfit / max(1, len(self._spaces))

    def _gain(
        self, rows: torch.Tensor, direction: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the derivative of every next token's log-probability, and that itself.

        The derivative is against the direction of a gradient: where training would move.

        Returns:
            Two tables of shape ``(n, length, vocabulary)``; of many rows the last place alone.
        """
        kinds = self._model.kinds
        before = self._model.read_vector(kinds)
        try:
            self._model.add_vector(direction, scale=-_STEP)
            after = self._log_probabilities(rows)
            self._model.add_vector(direction, scale=2 * _STEP)
            opposite = self._log_probabilities(rows)
        finally:
            self._model.load_vector(before, kinds)
        gain = (after - opposite) / (2 * _STEP)
        gain[..., self._never] = -torch.inf
        logs = self._log_probabilities(rows)
        logs[..., self._never] = -torch.inf
        return gain, logs

    def _log_probabilities(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the log-probability of every token after every place."""
        found = []
        for chunk in torch.split(rows, 256):
            with torch.no_grad():
                logits = self._model.peft_model(input_ids=chunk, use_cache=False).logits.float()
            found.append(F.log_softmax(logits[:, -1:] if len(rows) > 1 else logits, dim=-1))
        return torch.cat(found)

    def _pool(self, place: int) -> torch.Tensor | None:
        """Return the misfit of every token at a place; None where no row space shows it."""
        spaces = [space for space in self._spaces if space.layer in self._first]
        if not spaces:
            return None
        if place not in self._pools:
            parts = []
            tokens = torch.arange(self._vocabulary, device=self._model.device)
            for chunk in torch.split(tokens, 4096):
                ids = chunk[:, None]
                with torch.no_grad(), inputs_of(self._model, self._first) as inputs:
                    where = torch.full_like(ids, place)
                    self._model.peft_model(input_ids=ids, position_ids=where, use_cache=False)
                worst = [space.misfit(inputs[space.layer])[:, 0] for space in spaces]
                parts.append(torch.stack(worst).mean(dim=0))
            self._pools[place] = torch.cat(parts)
            self._pools[place][self._never] = 2.0
        return self._pools[place]


def _moved(row: torch.Tensor, start: int) -> torch.Tensor:
    """Return a text with one token moved to another place, or two of them swapped."""
    ids, found = row.tolist(), []
    for i in range(start, len(ids)):
        for j in range(start, len(ids)):
            if i == j:
                continue
            moved = [*ids]
            moved.insert(j, moved.pop(i))
            swapped = [*ids]
            swapped[i], swapped[j] = swapped[j], swapped[i]
            found += [moved, swapped]
    return _distinct(torch.tensor(found or [ids], device=row.device))


def _distinct(rows: torch.Tensor) -> torch.Tensor:
    """Return each row once."""
    found: torch.Tensor = torch.unique(rows, dim=0)
    return found


def _factor_places(model: AdaptedModel) -> list[tuple[Any, str]]:
    """Return the layer and the kind of each trainable factor, in canonical order."""
    known = {id(layer.a): (layer, "A") for layer in model.layers}
    known |= {id(layer.b): (layer, "B") for layer in model.layers}
    return [known[id(parameter)] for _, parameter in model.trainable]
