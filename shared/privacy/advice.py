"""What a careful reader should question about a choice of privacy numbers, in plain words."""

from __future__ import annotations

NO_PRIVACY = (
    "NO PRIVACY: nothing is clipped and no noise is added; epsilon is infinite and the updates "
    "and the adapter may reveal any training text."
)
LARGE_EPSILON = 10.0
SMALL_COHORT = 20.0


def numbers_to_question(
    *,
    unit: str,
    epsilon: float,
    observer_epsilon: float,
    delta: float,
    units: int | None,
    cohort: float | None,
    replace_one: bool,
    seeded: bool,
    server_epsilon: float | None = None,
) -> tuple[str, ...]:
    """List what is doubtful about a plan; an empty tuple means that nothing stood out.

    Args:
        unit: ``"example"`` or ``"client"``.
        epsilon: of the whole plan.
        observer_epsilon: the same without amplification by the sampling of clients.
        delta: of both.
        units: public number of units (of one client's examples for ``"example"``), if known.
        cohort: expected number of clients in a round, where clients are sampled.
        replace_one: whether the relation is replace-one.
        seeded: whether the noise can be recomputed from the run's seed.
        server_epsilon: against the server itself, where it sees no update.

    Returns:
        One sentence per doubt.
    """
    found: list[str] = []
    if units is not None and delta >= 1.0 / units:
        found.append(
            f"delta={delta:.3g} is not below 1/{units}: publishing one whole {unit} at random "
            f"would satisfy it. Choose delta well below {1.0 / units:.3g}."
        )
    if units is None:
        found.append(
            f"delta={delta:.3g} was not compared with the number of {unit}s, which is not given; "
            "it should be well below one over that number."
        )
    if epsilon > LARGE_EPSILON:
        found.append(
            f"epsilon={epsilon:.3g} is above {LARGE_EPSILON:g}: the guarantee alone allows an "
            "attacker to be nearly certain; rely on it only together with an audit."
        )
    if observer_epsilon > max(LARGE_EPSILON, epsilon):
        found.append(
            f"whoever knows in which rounds a client took part is bounded only by "
            f"epsilon={observer_epsilon:.3g}; more noise or fewer rounds lower it."
        )
    if server_epsilon is not None and server_epsilon > LARGE_EPSILON:
        found.append(
            f"the server, with the clients that collude with it, is bounded only by epsilon="
            f"{server_epsilon:.3g}: it sees each round and knows who took part. A cap on "
            "participations, more noise or fewer rounds lower it."
        )
    if cohort is not None and cohort < SMALL_COHORT:
        found.append(
            f"the expected cohort of {cohort:.3g} clients is small: the noise is divided by it, "
            "so the model will learn little, and a round may be empty."
        )
    if not replace_one:
        found.append(
            f"the relation is add-or-remove-one: epsilon bounds what is learned from the presence "
            f"of one {unit}; for a changed {unit} (replace-one) it is larger with the same noise."
        )
    if seeded:
        found.append(
            "the noise comes from the run's seed: whoever knows the seed can subtract it, so this "
            "run protects nobody and is for simulation only."
        )
    return tuple(found)
