"""``fedslm budget export``: the ledger's numbers and the operator's words, and nothing else."""

from __future__ import annotations

import json
import re
import sqlite3
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from shared import errors
from shared.privacy.ledger import Ledger
from shared.privacy.ledger_signing import LedgerSigner
from shared.privacy.plan import PrivacyPlan
from shared.privacy.planning import make_plan
from shared.privacy.quantile import QuantileClipping
from simulations.attest.about import NOT_STATED, About
from simulations.cli import run
from tests.integration.scenario import run_small

FILES = ("privacy-deployment.yaml", "privacy-statement.html", "privacy-statement.md")
BASE: dict[str, Any] = {
    "neighboring_relation": "add-or-remove-one",
    "noise_multiplier": 2.0,
    "rounds": 4,
    "population": 1000,
    "delta": 1e-5,
}
CENTRAL: dict[str, Any] = {
    **BASE,
    "mode": "client-central",
    "unit": "client",
    "clipping_norm": 0.5,
    "sampling_probability": 0.1,
}
EXAMPLE: dict[str, Any] = {
    **BASE,
    "mode": "example",
    "unit": "example",
    "max_grad_norm": 0.5,
    "sampling_probability": 0.05,
    "releases_per_round": 3,
    "dataset_size": 400,
}
DISTRIBUTED: dict[str, Any] = {
    **CENTRAL,
    "mode": "client-distributed",
    "honest_fraction": 0.9,
    "survivor_fraction": 0.75,
    "min_cohort": 20,
}
# The fields of the registry's schema (deployments-schema.yaml), in its order.
FIELDS = {
    "basic": [
        "name",
        "data_curators",
        "intended_use",
        "data_product_type",
        "data_product_region",
        "description",
        "publication_date",
        "data_product_sector",
    ],
    "dp_variant": ["variant_name", "data_domain", "unprotected_quantities"],
    "privacy_loss": [
        "privacy_unit",
        "privacy_unit_details",
        "privacy_parameters",
        "privacy_parameters_details",
    ],
    "deployment_model": [
        "model_name",
        "model_name_details",
        "actors",
        "release_type",
        "release_type_details",
        "data_source_type",
        "access_type",
        "access_type_details",
    ],
    "accounting": ["post_processing", "composition"],
    "implementation": [
        "preprocessing_and_hyperparameter_tuning",
        "mechanisms",
        "justification",
    ],
    "administrative": ["sources", "registry_authors"],
}
ABOUT = """
name = "Clinic | notes <script>alert(1)</script>"
intended_use = "completing notes"
region = "Utopia"
sector = "Healthcare"
publication_date = 2030-01-02
examples_per_person = 2
clients_per_person = 1
security = "encrypted disks; the clinic alone has the key"
other_releases = "none"
hyperparameter_tuning = "on synthetic notes"
preprocessing = "none"
registry_authors = ["A. Author"]

[[curators]]
name = "A clinic"
type = "Nonprofit"
"""


def make_ledger(folder: Path, *plans: PrivacyPlan, signer: LedgerSigner | None = None) -> Path:
    """Charge two rounds of every plan: the population, or two clients of which one comes twice."""
    path = folder / "ledger.sqlite"
    with Ledger(path, signer=signer) as ledger:
        for plan in plans:
            digest = ledger.register_plan("run-1", plan, "notes")
            per_client = [["client-0", "client-1"], ["client-1"]]
            for number, clients in enumerate(per_client, start=1):
                reserved = ledger.reserve(
                    run_id="run-1",
                    server_round=number,
                    subjects=clients if plan.mode == "example" else ["population"],
                    event=plan.event_for_participation(),
                    plan_digest=digest,
                )
                ledger.commit(reserved)
    return path


def export(path: Path, *more: str) -> dict[str, str]:
    """Run the command and return the files that it wrote, by name."""
    assert run(["budget", "export", str(path), *more]) == 0
    folder = path.parent
    return {name: (folder / name).read_text(encoding="utf-8") for name in FILES}


@pytest.mark.parametrize("base", [CENTRAL, EXAMPLE, DISTRIBUTED], ids=lambda base: base["mode"])
def test_the_record_has_the_registrys_fields_and_the_ledgers_numbers(
    tmp_path: Path, base: dict[str, Any]
) -> None:
    plan = make_plan(**base)
    path = make_ledger(tmp_path, plan)
    record = yaml.safe_load(export(path)["privacy-deployment.yaml"])
    assert list(record) == ["url_slug", "status", "tier", "deployment"]
    deployment = record["deployment"]
    assert {name: list(part) for name, part in deployment.items()} == FIELDS
    worst = "client-1" if plan.mode == "example" else "population"
    with Ledger(path) as ledger:
        spent = ledger.spent(worst, "notes")
    parameters = deployment["privacy_loss"]["privacy_parameters"]
    assert parameters == {"epsilon": spent.epsilon, "delta": spent.delta}
    assert (
        deployment["deployment_model"]["model_name"]
        == {
            "example": "Local",
            "client-central": "Central",
            "client-distributed": "Federated",
        }[plan.mode]
    )
    assert deployment["dp_variant"]["variant_name"] == "Approximate DP"
    assert deployment["basic"]["intended_use"] == NOT_STATED
    assert deployment["administrative"]["registry_authors"] == [NOT_STATED]


def test_equal_ledgers_give_equal_files(tmp_path: Path) -> None:
    path = make_ledger(tmp_path, make_plan(**CENTRAL))
    assert export(path) == export(path)


def test_the_operators_words_are_quoted_and_escaped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    about = tmp_path / "about.toml"
    about.write_text(ABOUT, encoding="utf-8")
    files = export(make_ledger(tmp_path, make_plan(**EXAMPLE)), "--about", str(about))
    assert "Not stated" not in capsys.readouterr().err
    record = yaml.safe_load(files["privacy-deployment.yaml"])
    basic = record["deployment"]["basic"]
    assert basic["data_curators"] == [
        {"data_curator_name": "A clinic", "data_curator_type": "Nonprofit"}
    ]
    assert basic["publication_date"] == "2030-01-02"
    assert record["url_slug"] == "clinic-notes-script-alert-1-script"
    assert "With at most 2 examples of one person" in files["privacy-statement.md"]
    page = files["privacy-statement.html"]
    assert "<script>" not in page
    assert "encrypted disks" in page
    assert files["privacy-statement.md"].startswith("# Privacy statement: Clinic \\| notes")


class Tags(HTMLParser):
    """Every tag with its attributes, and whether all that were opened were closed."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in {"meta", "link"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_asks_nobody(tmp_path: Path) -> None:
    page = export(make_ledger(tmp_path, make_plan(**CENTRAL)))["privacy-statement.html"]
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    names = {tag for tag, _ in tags.found}
    assert not names & {"script", "img", "iframe", "object"}
    links = [attributes.get("href") for tag, attributes in tags.found if tag in {"link", "a"}]
    assert links == ["data:,"]
    assert "default-src 'none'" in page
    assert not re.search(r"https?://", page)


def test_both_units_of_a_plan_are_stated(tmp_path: Path) -> None:
    inner = make_plan(**EXAMPLE)
    outer = make_plan(**DISTRIBUTED, example=inner)
    path = make_ledger(tmp_path, outer, inner)
    files = export(path)
    with Ledger(path) as ledger:
        per_client = ledger.spent("population", "notes").epsilon
        per_example = ledger.spent("client-1", "notes").epsilon
    record = yaml.safe_load(files["privacy-deployment.yaml"])
    loss = record["deployment"]["privacy_loss"]
    assert loss["privacy_unit"] == "Client-level"
    assert loss["privacy_parameters"]["epsilon"] == per_client != per_example
    assert "one training example of one client" in loss["privacy_unit_details"]
    page = files["privacy-statement.md"]
    assert "|  | unit: client | unit: example |" in page
    assert "about any one client" in page
    assert "about any one example" in page
    assert "A second guarantee" not in page  # it has its own column and sentences
    assert "The server sees each client's noised update" not in page  # it sees noised sums
    assert "Per client: releases are integers" in page
    assert "Per example: the noise is floating-point" in page


def test_a_second_guarantee_that_charged_nobody_is_still_stated(tmp_path: Path) -> None:
    inner = make_plan(**EXAMPLE)
    page = export(make_ledger(tmp_path, make_plan(**CENTRAL, example=inner)))
    assert "A second guarantee holds beside the first" in page["privacy-statement.md"]
    assert "Is there a guarantee for another unit?" in page["privacy-statement.html"]


def test_a_moving_clip_is_said_to_be_paid_for(tmp_path: Path) -> None:
    terms = QuantileClipping(target=0.5, learning_rate=0.2, count_noise_stddev=10.0, initial=0.5)
    page = export(make_ledger(tmp_path, make_plan(**CENTRAL, quantile=terms)))
    assert "following the quantile is paid for" in page["privacy-statement.md"]


def checklist(path: Path, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    capsys.readouterr()
    assert run(["budget", "export", str(path), "--json", *more]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["files"] == sorted(FILES)
    return {item["topic"]: item for item in report["checklist"]}


def test_every_item_of_the_publication_is_answered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items = checklist(make_ledger(tmp_path, make_plan(**CENTRAL)), capsys)
    assert set(items) >= {
        "unit-client",
        "parameters-client",
        "size-client",
        "observers-client",
        "mechanism",
        "sampling",
        "composition",
        "randomness",
        "floating-point",
        "side-channels",
        "audit",
        "not-protected",
        "non-private-releases",
        "tuning",
        "preprocessing",
        "security",
        "collection",
    }
    assert items["observers-client"]["status"] == "attention"  # the server is trusted
    assert items["security"]["status"] == "not stated"
    assert items["floating-point"]["status"] == "attention"
    assert "epsilon" in items["parameters-client"]["finding"]
    assert "delta" in items["parameters-client"]["finding"]


def test_integers_on_a_grid_settle_the_question_of_floating_point(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items = checklist(make_ledger(tmp_path, make_plan(**DISTRIBUTED)), capsys)
    assert items["floating-point"]["status"] == "stated"
    assert items["observers-client"]["status"] == "stated"
    assert "not colluding with the server" in items["observers-client"]["finding"]


@pytest.mark.parametrize(
    ("noise", "status", "words"),
    [
        (10.0, "stated", "strong"),
        (2.0, "attention", "audit"),
        (0.3, "attention", "next to nothing"),
    ],
)
def test_the_size_of_epsilon_is_judged(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    noise: float,
    status: str,
    words: str,
) -> None:
    plan = make_plan(**{**CENTRAL, "noise_multiplier": noise, "sampling_probability": 1.0})
    item = checklist(make_ledger(tmp_path, plan), capsys)["size-client"]
    assert item["status"] == status
    assert words in item["finding"]


def test_seeded_noise_is_an_alarm_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_ledger(tmp_path, make_plan(**CENTRAL, noise_source="seeded-simulation"))
    files = export(path)
    assert "SIMULATION" in files["privacy-statement.md"].splitlines()[2]
    assert 'class="alarm"' in files["privacy-statement.html"]
    assert "nobody is protected" in files["privacy-deployment.yaml"].lower()
    assert checklist(path, capsys)["randomness"]["status"] == "not protected"


def test_a_run_folder_adds_what_the_run_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_ledger(tmp_path, make_plan(**EXAMPLE))
    summary = {
        "scenario": "clinics",
        "loss_after": 2.5,
        "statement": {"group_size": 4},
        "versions": {"torch": "1.2.3"},
        "base_model": "demo",
    }
    (tmp_path / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    (tmp_path / "audit.json").write_text('{"verdict": "consistent"}', encoding="utf-8")
    items = checklist(tmp_path, capsys)
    assert items["audit"]["status"] == "stated"
    assert items["non-private-releases"]["status"] == "not protected"
    assert "This was a simulation" in items["collection"]["finding"]
    assert "With at most 4 examples" in items["unit-example"]["finding"]
    assert (
        (tmp_path / "privacy-statement.md").read_text().startswith("# Privacy statement: clinics")
    )
    assert "torch 1.2.3" in (tmp_path / "privacy-deployment.yaml").read_text(encoding="utf-8")


def test_out_and_scope_choose_where_and_what(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_ledger(tmp_path, make_plan(**CENTRAL))
    plan = make_plan(**CENTRAL)
    with Ledger(path) as ledger:
        ledger.register_plan("run-2", plan, "letters")
        ledger.reserve(
            run_id="run-2",
            server_round=1,
            subjects=["population"],
            event=plan.event_for_participation(),
        )
    assert run(["budget", "export", str(path)]) == errors.LedgerError.exit_code
    assert "letters, notes" in capsys.readouterr().err
    out = tmp_path / "deep" / "folder"
    assert run(["budget", "export", str(path), "--scope", "letters", "--out", str(out)]) == 0
    assert "run-2" in (out / "privacy-statement.md").read_text(encoding="utf-8")
    assert not (tmp_path / "privacy-statement.md").exists()


def test_nothing_is_exported_from_a_ledger_that_does_not_verify(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_ledger(tmp_path, make_plan(**CENTRAL))
    with sqlite3.connect(path) as db:
        for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type='trigger'").fetchall():
            db.execute(f"DROP TRIGGER {name}")
        db.execute("UPDATE entries SET server_round = 9 WHERE seq = 1")
    assert run(["budget", "export", str(path)]) == errors.LedgerTampered.exit_code == 27
    assert "1" in capsys.readouterr().err
    assert not any((tmp_path / name).exists() for name in FILES)


def test_the_key_and_the_head_are_checked_and_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    signer = LedgerSigner.load_or_create(tmp_path / "ledger.key")
    path = make_ledger(tmp_path, make_plan(**CENTRAL), signer=signer)
    page = export(path)["privacy-statement.md"]
    assert f"--public-key {signer.public_key}" in page
    assert "ask the holder" in page
    command = next(line.strip() for line in page.splitlines() if "budget verify" in line)
    arguments = command.removeprefix("fedslm ").replace("ledger.sqlite", str(path)).split()
    assert run(arguments) == 0
    page = export(path, "--public-key", signer.public_key)["privacy-statement.md"]
    assert "the key was known beforehand" in page
    wrong = ["budget", "export", str(path), "--public-key", "0" * 64]
    assert run(wrong) == errors.LedgerTampered.exit_code
    old = ["budget", "export", str(path), "--anchor", f"1:{'0' * 64}"]
    assert run(old) == errors.LedgerTampered.exit_code
    for bad in ("xyz", "g" * 64):
        assert run([*wrong[:-1], bad]) == errors.UsageError.exit_code
    capsys.readouterr()


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("nmae = 'x'", errors.UnknownKey, "Did you mean 'name'"),
        ("[[curators]]\nname = 'x'\ntpye = 'y'", errors.UnknownKey, "Did you mean 'type'"),
        ("name = 3", errors.InvalidValue, "name"),
        ("name = ''", errors.InvalidValue, "name"),
        ("examples_per_person = 0", errors.InvalidValue, "examples_per_person"),
        ("= 1", errors.InvalidValue, "not TOML"),
        (None, errors.InvalidValue, "cannot be read"),
    ],
)
def test_bad_words_of_the_operator_are_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    text: str | None,
    error: type[errors.FedSLMError],
    says: str,
) -> None:
    path = make_ledger(tmp_path, make_plan(**CENTRAL))
    about = tmp_path / "about.toml"
    if text is not None:
        about.write_text(text, encoding="utf-8")
    code = run(["budget", "export", str(path), "--about", str(about)])
    assert code == error.exit_code
    assert says in capsys.readouterr().err


def test_every_key_of_the_operators_file_says_what_it_is() -> None:
    assert all(field.description for field in About.model_fields.values())


@pytest.mark.slow
def test_a_run_in_two_modes_at_once_is_exported_as_it_ran(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A whole run: secure aggregation, and DP-SGD inside each client."""
    folder = tmp_path / "run"
    finished = run_small(
        folder,
        [
            "run.rounds=2",
            "privacy.mode=client-distributed",
            "privacy.honest_fraction=0.9",
            "privacy.survivor_fraction=0.7",
            "privacy.min_cohort=4",
            'example.neighboring_relation="add-or-remove-one"',
            "example.noise_multiplier=2.0",
            "example.delta=1e-5",
            "example.max_grad_norm=0.5",
            "example.sampling_probability=0.5",
        ],
    )
    items = checklist(folder, capsys)
    record = yaml.safe_load((folder / "privacy-deployment.yaml").read_text(encoding="utf-8"))
    loss = record["deployment"]["privacy_loss"]
    assert loss["privacy_parameters"]["epsilon"] == finished.summary["privacy"]["epsilon"]
    assert {"parameters-client", "parameters-example"} <= set(items)
    assert items["randomness"]["status"] == "not protected"  # the scenario is seeded
    page = (folder / "privacy-statement.md").read_text(encoding="utf-8")
    key = finished.summary["ledger"]["public_key"]
    assert f"--public-key {key}" in page
    assert run(["budget", "verify", str(folder), "--public-key", key]) == 0
    capsys.readouterr()
