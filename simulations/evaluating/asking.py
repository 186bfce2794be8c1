"""One task's questions before and after the adapter, and what changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from simulations.evaluating.harness import Answers, answer
from simulations.evaluating.paired import difference, discordant, holm, score
from simulations.evaluating.questions import Question, Task

if TYPE_CHECKING:
    from simulations.evaluating.subject import Subject


def ask(
    subject: Subject,
    task: Task,
    taken: Sequence[Question],
    *,
    done: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """Ask questions of a task before and after the adapter, and compare the answers.

    Args:
        subject: what answers.
        task: what the questions are of.
        taken: those of its questions that are asked.
        done: called with how many choices were scored since the last call.
    """
    answers: dict[str, Answers] = {}
    for view in subject.views:
        with subject.view(view) as model:
            answers[view] = answer(model, subject.base.tokenizer, task, taken, done=done)
    result: dict[str, Any] = {
        "kind": "questions",
        "measure": task.measure,
        "neutral": task.neutral,
        "chance": sum(1 / len(question.choices) for question in taken) / len(taken),
        "data": {"about": task.about, "digest": task.digest, "questions": len(task.questions)},
        "questions": len(taken),
        "cut": max(found.cut for found in answers.values()),
        "harness": {view: found.reported for view, found in answers.items()},
    }
    result |= compare({view: found.right for view, found in answers.items()})
    if task.normalised:
        result["per_character"] = compare(
            {view: found.right_normalised for view, found in answers.items()}
        )
    groups = _by_group(taken, answers)
    if groups:
        result["groups"] = groups
    return result


def compare(right: Mapping[str, Sequence[bool]]) -> dict[str, Any]:
    """Return each view's score and, of two, their paired difference and exact test."""
    found: dict[str, Any] = {view: score(values) for view, values in right.items()}
    if len(right) > 1:
        before, after = right.values()
        found["difference"] = difference(before, after)
        found |= discordant(before, after)
    return found


def _by_group(
    taken: Sequence[Question], answers: Mapping[str, Answers]
) -> dict[str, dict[str, Any]]:
    """Return the comparison within each group; p-values corrected for the number of groups."""
    members: dict[str, list[int]] = {}
    for index, question in enumerate(taken):
        if question.group:
            members.setdefault(question.group, []).append(index)
    found = {
        name: {
            "questions": len(rows),
            **compare({v: [a.right[row] for row in rows] for v, a in answers.items()}),
        }
        for name, rows in sorted(members.items())
    }
    if len(answers) > 1 and found:
        corrected = holm([one["p"] for one in found.values()])
        for one, p_value in zip(found.values(), corrected, strict=True):
            one["p_holm"] = p_value
    return found
