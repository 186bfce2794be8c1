"""lm-evaluation-harness as a library: our loaded model, our local questions, nothing else.

Tasks are dictionaries made here over questions that were read here: no task of the harness's own
catalogue is looked up, no data set is fetched, and no code of a model or a data set is run. The
harness tokenises, asks and aggregates; log-likelihoods come from
:mod:`simulations.evaluating.scoring`.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from shared.errors import MissingDependency, UnsupportedModel
from simulations.evaluating.scoring import Row, loglikelihoods

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from simulations.evaluating.questions import Question, Task

_UNKNOWN_WINDOW = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What a model answered.

    Attributes:
        right: for each question, whether the right choice is likelier than every other; a tie is
            not.
        right_normalised: the same of log-likelihood per character.
        reported: the harness's own mean and standard error of ``right``.
        cut: how many choices lost tokens at the beginning to the model's window.
    """

    right: tuple[bool, ...]
    right_normalised: tuple[bool, ...]
    reported: dict[str, float]
    cut: int


def require_harness() -> None:
    """Refuse to go on without lm-evaluation-harness.

    Raises:
        MissingDependency: with the line that installs it.
    """
    if find_spec("lm_eval") is None:
        msg = "lm-evaluation-harness is not installed, and tasks of questions need it."
        raise MissingDependency(msg, hint="pip install 'fedslm[eval]'")


def answer(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    questions: Sequence[Question],
    *,
    done: Callable[[int], None] = lambda count: None,
) -> Answers:
    """Let a model answer questions through the harness.

    Args:
        model: a causal language model, or PEFT's around one.
        tokenizer: its tokenizer.
        task: what the questions are of.
        questions: at least one.
        done: called with how many choices were scored since the last call.

    Raises:
        MissingDependency: if the harness is not installed.
        UnsupportedModel: if no token can stand before a text.
    """
    require_harness()
    _stay_local()
    from lm_eval.evaluator import evaluate

    asked = _harness_task(task, questions)
    lm = _language_model(model, tokenizer, done)
    found = evaluate(lm, {"tasks": {task.name: asked}}, bootstrap_iters=2, log_samples=True)
    samples = sorted(found["samples"][task.name], key=lambda sample: int(sample["doc_id"]))
    result = found["results"][task.name]
    return Answers(
        right=tuple(bool(sample["acc"]) for sample in samples),
        right_normalised=tuple(bool(sample["acc_norm"]) for sample in samples),
        reported={"acc": result["acc,none"], "acc_stderr": result["acc_stderr,none"]},
        cut=lm.cut,
    )


def judge(question: Question, likelihoods: Sequence[float]) -> dict[str, float]:
    """Return whether the right choice wins, by log-likelihood and by the same per character."""
    lengths = [len(choice.lstrip()) or 1 for choice in question.choices]
    each = [value / length for value, length in zip(likelihoods, lengths, strict=True)]
    return {"acc": _wins(likelihoods, question.gold), "acc_norm": _wins(each, question.gold)}


def _wins(values: Sequence[float], gold: int) -> float:
    """Return 1 if the value at ``gold`` is above all others."""
    return float(all(values[gold] > v for index, v in enumerate(values) if index != gold))


def _stay_local() -> None:
    """Keep the harness and what it imports quiet and off the network."""
    for name in ("HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE"):
        os.environ[name] = "1"
    # Its warnings may quote a question.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)


def _harness_task(task: Task, questions: Sequence[Question]) -> Any:  # noqa: ANN401
    """Return the harness's task over questions; it is given their numbers, and never the hub."""
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    def judged(doc: dict[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, float]:
        return judge(questions[doc["number"]], [value for value, _ in results])

    means = [
        {"metric": metric, "aggregation": "mean", "higher_is_better": True}
        for metric in ("acc", "acc_norm")
    ]

    class Quiet(ConfigurableTask):  # type: ignore[misc, unused-ignore]
        """A task without the harness's bars; whoever called shows progress."""

        def build_all_requests(self, **how: object) -> None:
            with redirect_stderr(io.StringIO()):
                super().build_all_requests(**how)

    return Quiet(
        config={
            "task": task.name,
            "custom_dataset": lambda **_: {
                "test": Dataset.from_dict({"number": list(range(len(questions)))})
            },
            "output_type": "multiple_choice",
            "test_split": "test",
            "doc_to_text": lambda doc: questions[doc["number"]].context,
            "doc_to_choice": lambda doc: list(questions[doc["number"]].choices),
            "doc_to_target": lambda doc: questions[doc["number"]].gold,
            "target_delimiter": "",
            "num_fewshot": 0,
            "process_results": judged,
            "metric_list": means,
            "metadata": {"version": 1},
        }
    )


def _language_model(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, done: Callable[[int], None]
) -> Any:  # noqa: ANN401
    """Return the harness's view of a loaded model."""
    from lm_eval.api.model import TemplateLM

    first = tokenizer.bos_token_id
    if first is None:
        first = tokenizer.eos_token_id
    if first is None:
        msg = "The tokenizer has neither a first nor a last token, so a text has no beginning."
        raise UnsupportedModel(msg)

    class Local(TemplateLM):  # type: ignore[misc, unused-ignore]
        """A model that is loaded already; it scores, and never generates."""

        cut = 0

        @property
        def eot_token_id(self) -> int:
            return int(first)

        def tok_encode(
            self, string: str, add_special_tokens: bool | None = None, **_: object
        ) -> list[int]:
            del add_special_tokens  # the first token is put before the context below
            encoded = tokenizer(
                string, add_special_tokens=False, split_special_tokens=True, verbose=False
            )
            return [int(token) for token in encoded["input_ids"]]

        def _loglikelihood_tokens(
            self,
            requests: Sequence[tuple[tuple[str, str], list[int], list[int]]],
            **_: object,
        ) -> list[tuple[float, bool]]:
            rows = []
            for (context, _text), before, after in requests:
                ids = [*before, *after] if context == "" else [int(first), *before, *after]
                kept = ids[-_window(model) :]
                self.cut += len(kept) < len(ids)
                rows.append(Row(tuple(kept), min(len(after), len(kept) - 1)))
            return loglikelihoods(model, rows, done)

        def loglikelihood(
            self,
            requests: list[Any],
            disable_tqdm: bool = True,
        ) -> list[tuple[float, bool]]:
            del disable_tqdm  # progress is shown by whoever called
            found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
            return found

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> list[float]:  # noqa: ANN401
            raise NotImplementedError

        def generate_until(self, requests: Any, disable_tqdm: bool = True) -> list[str]:  # noqa: ANN401
            raise NotImplementedError

    return Local()


def _window(model: Any) -> int:  # noqa: ANN401
    """Return how many tokens a model reads at most."""
    window = getattr(model.config, "max_position_embeddings", None)
    return int(window) if isinstance(window, int) and window > 1 else _UNKNOWN_WINDOW
