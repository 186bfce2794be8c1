"""The charts of a run: one for each thing that its rounds have measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from server.dashboard.charts import Chart, Line, chart
from server.dashboard.runs import Run
from server.dashboard.words import figure, number, size


def charts_of(metrics: Sequence[Mapping[str, Any]], run: Run) -> list[Chart]:
    """Draw what a run's metrics hold: nothing that was not measured."""
    rounds = max(len(metrics), run.planned or 0)
    found = []
    loss = _points(metrics, "loss")
    if loss:
        alt = f"{len(loss)} measurements, the last {figure(loss[-1][1])} nats per token."
        line = Line(name="held-out loss", points=loss, style="a")
        found.append(chart("Held-out loss", alt, [line], rounds=rounds, unit="nats per token"))
    epsilon = _points(metrics, "epsilon")
    if epsilon and run.promise.private:
        lines = [Line(name="epsilon", points=epsilon, style="a")]
        cap = run.promise.cap
        limit = "There is no cap."
        if cap is not None:
            edge = (min(1.0, epsilon[0][0]), float(max(rounds, 1)))
            points = tuple((x, cap) for x in edge)
            lines.append(Line(name="cap", points=points, style="c"))
            limit = f"The cap is {figure(cap)}."
        alt = f"Epsilon is {figure(epsilon[-1][1])} after {len(metrics)} rounds. {limit}"
        found.append(chart("Epsilon spent", alt, lines, rounds=rounds, unit="epsilon"))
    noise = _points(metrics, "noise_multiplier")
    if noise:
        alt = f"The last round had a noise multiplier of {figure(noise[-1][1])}."
        line = Line(name="noise multiplier", points=noise, style="a")
        found.append(chart("Noise of a round", alt, [line], rounds=rounds, unit="clips"))
    public, votes = _points(metrics, "public_loss"), _points(metrics, "vote")
    if public:
        alt = f"The last of {len(public)} is {figure(public[-1][1])} nats per token."
        line = Line(name="loss on public text", points=public, style="a")
        found.append(chart("Public loss", alt, [line], rounds=rounds, unit="nats per token"))
    if votes:
        alt = f"The last of {len(votes)} votes came to {figure(votes[-1][1])} of the cohort."
        line = Line(name="noised votes", points=votes, style="a")
        found.append(chart("Votes", alt, [line], rounds=rounds, unit="share of the cohort"))
    sampled, answered = _points(metrics, "cohort"), _points(metrics, "answered")
    if sampled:
        lines = [
            Line(name="sampled", points=sampled, style="b"),
            Line(name="answered", points=answered or sampled, style="a"),
        ]
        alt = f"In the last round {figure(sampled[-1][1])} clients were sampled"
        alt += f" and {figure(answered[-1][1])} answered." if answered else "."
        found.append(chart("Clients by round", alt, lines, rounds=rounds, unit="clients"))
    seconds = _points(metrics, "seconds")
    if seconds:
        alt = f"The last round took {figure(seconds[-1][1], 3)} seconds."
        line = Line(name="seconds", points=seconds, style="a")
        found.append(chart("Time of a round", alt, [line], rounds=rounds, unit="seconds"))
    sent = _points(metrics, "bytes_up_per_client")
    if sent:
        alt = f"A client sent {size(sent[-1][1])} in the last round."
        kilo = tuple((x, y / 1000) for x, y in sent)
        line = Line(name="sent by a client", points=kilo, style="a")
        found.append(chart("Upload of a client", alt, [line], rounds=rounds, unit="kB"))
    return found


def _points(metrics: Sequence[Mapping[str, Any]], key: str) -> tuple[tuple[float, float], ...]:
    """Return (round, value) where a value was measured."""
    found = []
    for row in metrics:
        server_round, value = number(row.get("round")), number(row.get(key))
        if server_round is not None and value is not None:
            found.append((server_round, value))
    return tuple(found)
