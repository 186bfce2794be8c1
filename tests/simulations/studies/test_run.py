"""Each study for real, at its tiny sizes: what is written, what is kept, what is never written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import server.strategy
from server.cohort import sample_cohort
from shared.errors import InvalidValue, NotResumable
from shared.privacy.noise import NoiseSource
from simulations.auditing.dossier import open_dossier
from simulations.studies.catalog import MODULES, study
from simulations.studies.measuring import measure
from simulations.studies.running import run_study
from simulations.study_cli import study_app


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_a_quick_study_leaves_table_plots_and_numbers_and_runs_nothing_twice(
    name: str, tmp_path: Path
) -> None:
    arguments = ["run", name, "--quick", "--out", str(tmp_path)]
    first = CliRunner().invoke(study_app, [*arguments, "--json"], catch_exceptions=False)
    assert first.exit_code == 0
    report = json.loads(first.stdout)
    arms = study(name).arms(True)
    assert report["runs_made_now"] == len(arms)
    assert [run["arm"] for run in report["runs"]] == [arm.name for arm in arms]
    for run in report["runs"]:
        secret = run["kinds"]["secret"]
        assert min(secret["included"], secret["held_out"]) >= 8
        assert 0 <= secret["auc"] <= 1
        assert 0 <= secret["exposure_bits"] <= 6.1  # 64 references allow log2(65)
        assert run["loss_after"] != run["loss_before"]
    page = (tmp_path / "study.md").read_text(encoding="utf-8")
    assert f"`fedslm study run {name} --quick`" in page
    for plot in report["plots"]:
        assert f"({plot})" in page
        assert (tmp_path / plot).read_text(encoding="utf-8").startswith("<svg")

    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "measured").iterdir()}
    second = CliRunner().invoke(study_app, arguments, catch_exceptions=False)
    assert second.exit_code == 0
    assert second.stderr.count(": kept") == len(arms)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "measured").iterdir()} == kept
    again = json.loads((tmp_path / "study.json").read_text(encoding="utf-8"))
    assert again["rows"] == report["rows"]
    assert again["runs_made_now"] == 0


@pytest.mark.slow
def test_measured_rounds_are_the_cohorts_that_ran_and_no_secret_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[list[int]] = []

    def recorded(population: int, probability: float, source: NoiseSource) -> list[int]:
        drawn.append(sample_cohort(population, probability, source))
        return drawn[-1]

    monkeypatch.setattr(server.strategy, "sample_cohort", recorded)
    item = study("late-or-early")
    run_study(item, folder=tmp_path, quick=True, note=lambda _: None)
    (measured,) = (tmp_path / "measured").iterdir()
    run: dict[str, Any] = json.loads(measured.read_text(encoding="utf-8"))
    run_dir = tmp_path / "runs" / "all-seed7"
    with open_dossier(run_dir, base_dir=tmp_path) as dossier:
        canaries = [c for c in dossier.assembly.canaries.canaries if c.included]
    assert len(drawn) == run["rounds"]
    assert [entry["rounds"] for entry in run["canaries"]] == [
        [place + 1 for place, cohort in enumerate(drawn) if canary.client in cohort]
        for canary in canaries
    ]
    told = measured.read_text(encoding="utf-8") + (tmp_path / "study.json").read_text("utf-8")
    assert canaries
    assert not any(canary.text in told or canary.prompt in told for canary in canaries)
    # The audit's own mean, from the same losses by another road.
    bits = [entry["bits"] for entry in run["canaries"]]
    assert sum(bits) / len(bits) == pytest.approx(run["kinds"]["secret"]["exposure_bits"], abs=1e-4)
    repeated = measure(run_dir, base_dir=tmp_path)
    assert {key: run[key] for key in repeated} == repeated

    # Another setting does not pass for the same run.
    with pytest.raises(NotResumable):
        run_study(item, folder=tmp_path, quick=False, seeds=1, note=lambda _: None)


@pytest.mark.parametrize("seeds", [0, -1])
def test_a_number_of_seeds_that_is_none_is_refused(seeds: int, tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match="seeds"):
        run_study(study("targets"), folder=tmp_path, seeds=seeds, note=lambda _: None)
    assert not list(tmp_path.iterdir())
