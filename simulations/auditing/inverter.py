"""Updates of single clients, made by the client's real steps, and the search for their texts.

Each update is one step on the beginnings of some of a client's texts, which is the best that an
attacker can hope for: more steps and longer texts mix more.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

from server.audit.inverter import Inverter, Recovered, Tokens
from shared.errors import NoUsableText
from shared.lora import Factors, Vector
from shared.seeding import data_rng
from simulations.auditing.onestep import OneStep
from simulations.auditing.searchsettings import SearchSettings
from simulations.auditing.textsearch import TextSearch

if TYPE_CHECKING:
    from client.runtime import ClientRuntime

TOKENS = 8
"""Tokens of a text that are trained on and looked for, a start token included."""

TOGETHER = 4
"""Clients whose updates the arm ``summed`` sums, one text each."""

_OTHERS = 8
_CLIENTS = 16
_TEXTS = 4
_SAME = 1e-6


class RuntimeInverter(Inverter):
    """Lets clients of a simulation take one step, and inverts what would have left them.

    Nothing is released and nothing is charged: the operator of a simulation holds the text anyway.

    Args:
        runtime: the clients; its adapter is changed and put back.
        released: the trained factors that the step starts from. With A and B both travelling, a B
            of zeros hides A's gradient.
        clients: indices of clients with texts of at least ``tokens`` tokens.
        tokens: tokens of a text, from its beginning.
        together: clients that are summed.
        settings: how hard the search tries.
    """

    def __init__(
        self,
        runtime: ClientRuntime,
        *,
        released: Vector,
        clients: Sequence[int],
        tokens: int = TOKENS,
        together: int = TOGETHER,
        settings: SearchSettings | None = None,
    ) -> None:
        self._runtime, self._model, self._plan = runtime, runtime.model, runtime.plan
        self._onestep = OneStep(runtime)
        self._tokens, self._together = tokens, together
        self._settings = settings or SearchSettings()
        self._frozen = self._model.factors()
        travelling = self._model.spec.unflatten(released, runtime.config.trained_kinds)
        self._start: Factors = {**self._frozen, **travelling}
        self._texts = [_beginnings(runtime, index, tokens) for index in clients]
        tokenizer = self._model.base.tokenizer
        start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
        self._known = () if start is None else (int(start),)
        self._never = sorted({int(token) for token in tokenizer.all_special_ids} - {end})
        self._guess: Tokens | None = None
        self._plain: dict[tuple[int, int], tuple[Vector, tuple[Tokens, ...]]] = {}

    @classmethod
    def of_run(
        cls, runtime: ClientRuntime, *, released: Vector, population: int
    ) -> RuntimeInverter:
        """Return an inverter of a finished run: some of its clients, chosen by its seed.

        Clients with enough texts for the largest batch come first.

        Args:
            runtime: the clients.
            released: the trained factors of the released adapter.
            population: real clients; canary clients come after them and own no text.
        """
        order = data_rng(runtime.config.run.seed, "inversion-clients").permutation(population)
        for least in (_TEXTS, 1):
            usable = (i for i in order.tolist() if len(_beginnings(runtime, i, TOKENS)) >= least)
            clients = list(itertools.islice(usable, _CLIENTS))
            if len(clients) >= _TEXTS:
                break
        return cls(runtime, released=released, clients=clients)

    @property
    def mode(self) -> str:
        """Return the privacy mode."""
        return self._plan.mode

    @property
    def factors(self) -> str:
        """Return which factors travel."""
        config = self._runtime.config
        return config.sent_kinds(config.policy_facts.probed_round)

    @property
    def arms(self) -> tuple[str, ...]:
        """Return all four arms; in mode none, where nothing clips or adds noise, two."""
        return ("plain", "summed") if self.mode == "none" else tuple(self._onestep.makers())

    @property
    def sent(self) -> str:
        """Return the arm that the server sees."""
        return self._onestep.sent

    @property
    def clients(self) -> int:
        """Return how many clients there are; as many again serve as controls and other texts."""
        return len(self._texts) // 2

    @property
    def largest_batch(self) -> int:
        """Return the number of texts of the poorest client."""
        return min((len(texts) for texts in self._texts), default=0)

    @property
    def tokens(self) -> int:
        """Return the tokens of a text."""
        return self._tokens

    @property
    def together(self) -> int:
        """Return the number of clients that are summed."""
        return min(self._together, len(self._texts))

    @property
    def evaluations(self) -> int:
        """Return the most gradients for one text."""
        return self._settings.evaluations(self._tokens)

    def attack(self, arm: str, number: int, *, batch: int) -> Recovered:
        """Attack one update; ``summed`` holds one text of each of several clients."""
        count = self.together if arm == "summed" else 1
        owners = [(number + j) % len(self._texts) for j in range(count)]
        groups = [self._texts[owner][:batch] for owner in owners]
        truth = [text for group in groups for text in group]
        with self._borrowed():
            gradient = -self._onestep.makers()[arm](groups, number)
            unit = gradient / max(float(np.linalg.norm(gradient)), 1e-30)
            known = self._plain.get((number, batch))
            if known is not None and float(np.abs(known[0] - unit).max()) < _SAME:
                # One factor for the whole update changes no direction, so nothing to search anew.
                found = known[1]
            else:
                found = self._search(gradient, len(truth), self._tokens)
            if arm == "plain":
                self._plain[number, batch] = (unit, found)
            return self._recovered(truth, found, owners)

    def control(self, number: int) -> Recovered:
        """Attack a plain step on a text of another client, three quarters as long."""
        owner = len(self._texts) - 1 - number
        length = max(len(self._known) + 2, 3 * self._tokens // 4)
        text = self._texts[owner][0][:length]
        with self._borrowed():
            found = self._search(-self._onestep.step([text]), 1, length)
            return self._recovered([text], found, [owner])

    @contextmanager
    def _borrowed(self) -> Iterator[None]:
        """Let the model hold what the server sent; leave it as it was."""
        try:
            self._model.load(self._start)
            self._model.set_trainable(self.factors)
            yield
        finally:
            self._model.load(self._frozen)

    def _search(self, gradient: Vector, texts: int, length: int) -> tuple[Tokens, ...]:
        """Look for the texts behind a gradient; noise alone gives whatever it gives."""
        search = TextSearch(
            self._model,
            np.asarray(gradient, dtype=np.float32),
            length=length,
            known=self._known,
            never=self._never,
            settings=self._settings,
        )
        return tuple(search.find(texts))

    def _recovered(
        self, truth: Sequence[Tokens], found: tuple[Tokens, ...], owners: Sequence[int]
    ) -> Recovered:
        """Set what was found beside the truth and beside what could be had without the update."""
        skipped, length = len(self._known), len(truth[0])
        total = len(self._texts)
        order = [(owners[-1] + 1 + j) % total for j in range(total)]
        others = [self._texts[owner] for owner in order if owner not in owners]
        # First one text of each other client, then a second one.
        mixed = [text for row in itertools.zip_longest(*others) for text in row if text is not None]
        return Recovered(
            truth=tuple(text[skipped:] for text in truth),
            found=found,
            guess=self._guessed()[: length - skipped],
            others=tuple(text[skipped:length] for text in mixed[: max(_OTHERS, len(truth))]),
        )

    def _guessed(self) -> Tokens:
        """Return what the model that was sent writes by itself, greedily."""
        if self._guess is None:
            tokenizer = self._model.base.tokenizer
            begin = self._known or (int(tokenizer.eos_token_id or 0),)
            ids = list(begin)
            for _ in range(self._tokens - len(self._known)):
                rows = torch.tensor([ids], device=self._model.device)
                with torch.no_grad():
                    logits = self._model.peft_model(input_ids=rows, use_cache=False).logits
                ids.append(int(logits[0, -1].argmax()))
            self._guess = tuple(ids[len(begin) :])
        return self._guess


def _beginnings(runtime: ClientRuntime, index: int, tokens: int) -> list[Tokens]:
    """Return the first tokens of each long enough text of a client, each beginning once."""
    try:
        examples, _ = runtime.examples(index)
    except NoUsableText:
        return []
    found = [tuple(int(i) for i in e.ids[:tokens]) for e in examples if e.ids.size >= tokens]
    return list(dict.fromkeys(found))
