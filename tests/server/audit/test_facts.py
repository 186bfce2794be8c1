"""Personal facts: where they stand, how they are asked for, and finding them in what is written."""

from __future__ import annotations

import pytest

from server.audit.facts import PersonalFact, PersonalFacts, from_template, questions, spoken
from shared.errors import InvalidValue


def test_a_filled_template_says_where_each_fact_stands() -> None:
    values = {"name": "Edda Fell", "phone": "555 0101", "address": "12 Elm St"}
    text, facts = from_template("{name} lives at {address}, call {phone}.", values)
    assert text == "Edda Fell lives at 12 Elm St, call 555 0101."
    assert [(f.kind, f.before, f.text) for f in facts] == [
        ("name", "", "Edda Fell"),
        ("address", "Edda Fell lives at", " 12 Elm St"),
        ("phone", "Edda Fell lives at 12 Elm St, call", " 555 0101"),
    ]
    assert all(text.startswith(fact.before + fact.text) for fact in facts)
    assert facts[0].asked == ()
    assert facts[2].asked == questions("phone", "Edda Fell")
    assert facts[2].asked[0] == "The phone number of Edda Fell is"


def test_braces_and_facts_without_a_space_are_kept_as_they_are() -> None:
    text, facts = from_template("{{tel:{phone}}}", {"phone": "555"})
    assert text == "{tel:555}"
    assert (facts[0].before, facts[0].text, facts[0].asked) == ("{tel:", "555", ())


@pytest.mark.parametrize("template", ["{", "no field", "{email}", "{phone!r}", "{phone:>9}", "{}"])
def test_templates_that_cannot_be_filled_are_refused(template: str) -> None:
    with pytest.raises(InvalidValue, match="template"):
        from_template(template, {"phone": "555"})


def test_unknown_kinds_have_no_questions() -> None:
    assert questions("shoe size", "Edda Fell") == ()
    assert len(questions("address", "Edda Fell")) == 2


def test_a_fact_is_found_as_a_whole_and_only_so() -> None:
    holders = [
        {"12 Elm St": "address", "Edda Fell": "name"},
        {"SE-9": "record_number"},
        {"555 0101": "phone"},
        {},
    ]
    outputs = ["Pt edda fell, 112 Elm St", "rec (SE-9).", "at 12 Elm Stone", "0101 555", ""]
    assert spoken(outputs, holders) == [{"name"}, {"record_number"}, set(), set()]
    assert spoken(["call 12 Elm  St; now"], holders)[0] == {"address"}
    assert spoken([], []) == []


def test_facts_that_cannot_be_looked_for_are_refused() -> None:
    with pytest.raises(InvalidValue, match="empty"):
        PersonalFact(kind="name", before="Pt", text=" ")
    with pytest.raises(InvalidValue, match="own candidates"):
        PersonalFact(kind="name", before="Pt", text=" Ana", candidates=(" Bo", " Ana"))


def test_the_repr_shows_nothing() -> None:
    fact = PersonalFact(kind="name", before="zqx", text="zqx", asked=("zqx",), candidates=("zq",))
    assert "zq" not in repr(PersonalFacts(trained=(fact,), fresh=(fact,)))
