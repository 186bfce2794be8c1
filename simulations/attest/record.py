"""The record of a deployment in the fields of the DP Deployments Registry (OpenDP and NIST).

Field names and the words of its enumerations are the registry's (deployments-schema.yaml of
github.com/opendp/deployments-registry-data, in the form of 2026). What nobody stated is written as
such; the registry's own check then asks for it.
"""

from __future__ import annotations

import re
from dataclasses import replace
from importlib import metadata
from typing import Any

import yaml

from shared.privacy.events import PrivacyUnit
from shared.privacy.noise import SEEDED
from simulations.attest.about import NOT_STATED
from simulations.attest.sources import Dossier, Promise

COMMON_DELTA = 1e-5
MODEL_NAMES = {
    "example": "Local",
    "client-central": "Central",
    "client-distributed": "Federated",
}
UNIT_NAMES = {PrivacyUnit.EXAMPLE: "Example-level", PrivacyUnit.CLIENT: "Client-level"}


def registry_record(dossier: Dossier) -> dict[str, Any]:
    """Return the record; equal facts give equal records."""
    about = dossier.about
    return {
        "url_slug": about.slug or _slug(dossier.title),
        "status": "Draft",
        "tier": 3,
        "deployment": {
            "basic": _basic(dossier),
            "dp_variant": {
                "variant_name": "Approximate DP",
                "data_domain": about.data_domain or NOT_STATED,
                "unprotected_quantities": _unprotected(dossier),
            },
            "privacy_loss": _privacy_loss(dossier),
            "deployment_model": _model(dossier),
            "accounting": _accounting(dossier),
            "implementation": _implementation(dossier),
            "administrative": {
                "sources": about.sources or NOT_STATED,
                "registry_authors": list(about.registry_authors) or [NOT_STATED],
            },
        },
    }


def to_yaml(record: dict[str, Any]) -> str:
    """Return a record as YAML that any safe loader reads back to the same values."""
    return yaml.dump(
        record, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=88, indent=2
    )


def _basic(dossier: Dossier) -> dict[str, Any]:
    """Return what the product is."""
    about = dossier.about
    curators = [
        {"data_curator_name": c.name, "data_curator_type": c.type} for c in about.curators
    ] or [{"data_curator_name": NOT_STATED, "data_curator_type": NOT_STATED}]
    date = about.publication_date
    return {
        "name": dossier.title,
        "data_curators": curators,
        "intended_use": about.intended_use or NOT_STATED,
        "data_product_type": "Machine learning model",
        "data_product_region": about.region or NOT_STATED,
        "description": about.description or NOT_STATED,
        "publication_date": NOT_STATED if date is None else date.isoformat(),
        "data_product_sector": about.sector or NOT_STATED,
    }


def _privacy_loss(dossier: Dossier) -> dict[str, Any]:
    """Return unit and parameters; the first guarantee in the fields, all of them in words."""
    first = dossier.promises[0]
    spent = first.guarantee.spent
    return {
        "privacy_unit": UNIT_NAMES[first.guarantee.unit],
        "privacy_unit_details": _each(
            dossier, lambda promise: promise.texts("unit", "adjacency", "not-per-person")
        ),
        "privacy_parameters": {"epsilon": spent.epsilon, "delta": spent.delta},
        "privacy_parameters_details": _each(dossier, _parameters),
    }


def _parameters(promise: Promise) -> str:
    """Say the numbers of one guarantee, all observers, and the same at a common delta."""
    common = replace(promise.plan, delta=COMMON_DELTA).epsilon()
    said = promise.texts("epsilon", "accountant", "observers", "second-guarantee")
    return (
        f"{said} For comparison with other systems: the whole plan spends epsilon = "
        f"{common:.4g} at delta = {COMMON_DELTA:g}."
    )


def _model(dossier: Dossier) -> dict[str, Any]:
    """Return who is trusted with what, and how adapters come out."""
    plan = dossier.promises[0].plan
    return {
        "model_name": MODEL_NAMES[plan.mode],
        "model_name_details": _each(dossier, lambda promise: promise.texts("who-sees-what")),
        "actors": (
            "- Clients hold their text and train on it; the text never leaves them.\n"
            "- The server chooses who takes part and averages. "
            f"{dossier.promises[0].texts('who-sees-what')}\n"
            "- Observers of the network see who took part, when and how much was sent.\n"
            "- Users of the adapter may be anyone; they see every released adapter.\n"
        ),
        "release_type": "Many releases",
        "release_type_details": (
            f"Each of at most {plan.rounds} rounds releases an adapter to the next cohort; the "
            f"budget is spent over all of them, and the ledger refuses what would pass the cap of "
            f"epsilon = {dossier.promises[0].guarantee.spent.cap:.4g}."
        ),
        "data_source_type": dossier.about.data_source_type or NOT_STATED,
        "access_type": "Non-interactive",
        "access_type_details": "Adapters are published; nobody can query the text.",
    }


def _accounting(dossier: Dossier) -> dict[str, Any]:
    """Return post-processing and composition."""
    evidence = dossier.evidence
    runs = len(evidence.runs)
    return {
        "post_processing": (
            "Averaging by a public constant, the server's optimiser, the average of rounds and the "
            "conversion of the adapter to other formats use released values alone."
        ),
        "composition": _each(dossier, lambda promise: promise.texts("composition"))
        + f" The ledger counts {runs} run{'s' if runs != 1 else ''} on these data; charges that "
        f"were neither committed nor given back ({evidence.open_reservations} now) count in full.",
    }


def _implementation(dossier: Dossier) -> dict[str, Any]:
    """Return mechanisms and the choices behind them."""
    about, run = dossier.about, dossier.run
    versions = ", ".join(f"{name} {version}" for name, version in sorted(run.versions.items()))
    software = (
        f"Implemented in fedslm; exported by version {_version()}. Versions of the run:"
        f" {versions or 'not recorded in the ledger'}."
    )
    seeded = any(p.plan.noise_source == SEEDED for p in dossier.promises)
    return {
        "preprocessing_and_hyperparameter_tuning": (
            f"Pre-processing: {about.preprocessing or NOT_STATED}. "
            f"Hyper-parameter tuning: {about.hyperparameter_tuning or NOT_STATED}. "
            "No cost of either is in the stated epsilon, except runs that the ledger counts."
        ),
        "mechanisms": "".join(
            f"- {text}\n"
            for text in (
                _each(dossier, lambda promise: promise.texts("mechanism", "sampling")),
                software,
                "Timing: not interactive; the time of a round is not protected.",
                f"Floating point: {_each(dossier, lambda p: p.texts('noise-source'))}",
                "Platform: memory, power and traffic side channels are not protected.",
                f"Security of the text on the clients: {about.security or NOT_STATED}.",
                *(["SIMULATION with seeded noise: nobody is protected by this run."] * seeded),
            )
        ),
        "justification": about.justification or NOT_STATED,
    }


def _unprotected(dossier: Dossier) -> str:
    """Return what epsilon does not cover."""
    stated = dossier.about.other_releases or NOT_STATED
    return (
        f"{_each(dossier, lambda promise: promise.texts('not-protected'))} "
        f"Other releases from the same data: {stated}."
    )


def _each(dossier: Dossier, text: Any) -> str:  # noqa: ANN401  (a function of a promise)
    """Return one text for every guarantee; a text that they share is said once."""
    return " ".join(dict.fromkeys(text(promise) for promise in dossier.promises))


def _version() -> str:
    """Return the version of this installation."""
    try:
        return metadata.version("fedslm")
    except metadata.PackageNotFoundError:
        return "unknown (run from its source)"


def _slug(title: str) -> str:
    """Return a title as lower-case words joined by hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "deployment"


class _Dumper(yaml.SafeDumper):
    """Safe YAML; texts of several lines are written as such."""

    def ignore_aliases(self, data: object) -> bool:
        """Write equal values out, each in its place."""
        del data
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    """Write a text of several lines as a block."""
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)
