"""Which aggregation policies go with which mode, mechanism, base and audit, and why not."""

from __future__ import annotations

from collections.abc import Iterator

from shared.config import RunConfig
from shared.errors import Problem
from shared.problems import conflict
from shared.sharerules import SHARE_WARNING, share_conflicts


def policy_conflicts(config: RunConfig) -> Iterator[Problem]:
    """Yield every rule about aggregation that a scenario breaks."""
    policy = config.policy_facts
    if not policy.linear:
        yield from _not_linear(config)
    if policy.residual:
        yield from _residual(config)
    if policy.alternates:
        yield from _alternating(config)
    if config.aggregation.refactor_every > 0:
        yield from _refactoring(config)
    if config.aggregation.share == "A":
        yield from share_conflicts(config)


def _not_linear(config: RunConfig) -> Iterator[Problem]:
    """Check a policy whose server needs every client's own factors."""
    policy, server, mode = config.policy, config.server, config.privacy.mode
    if mode in {"client-central", "client-distributed"}:
        why = (
            "noise on a sum does not cover a singular value decomposition of products that were "
            "never noised"
            if mode == "client-central"
            else "secure aggregation shows the server a sum alone, and it needs each client's "
            "product of factors"
        )
        yield conflict(
            key="aggregation.policy",
            message=f"{policy} cannot be used together with {mode}: {why}.",
            hint='Use "ffa" or "rolora", which are linear in what clients send.',
        )
    plain = (
        server.optimizer == "mean" and server.learning_rate == 1 and server.schedule == "constant"
    )
    if not plain:
        yield conflict(
            key="server.optimizer",
            message=f"{policy} sets the adapter to factors of the mean product, which is no step "
            "along a gradient: a rate, momentum or adam on factors has no meaning there.",
            hint='Set server.optimizer to "mean", learning_rate to 1.0, schedule to "constant".',
        )
    if config.aggregation.norm_bound is not None:
        yield conflict(
            key="aggregation.norm_bound",
            message=f"cannot be used together with {policy}: a bound on changes of factors bounds "
            "no change of their product.",
            hint='Leave norm_bound out, or use policy "fedavg".',
        )
    if server.averaging > 0:
        yield conflict(
            key="server.averaging",
            message=f"cannot be used together with {policy}: the mean of factors of several "
            "rounds, each with a basis or a residual of its own, is no mean of their products.",
        )
    if config.audit.client_canaries > 0:
        yield conflict(
            key="audit.client_canaries",
            message=f"cannot be used together with {policy}: what is released is no sum of "
            "updates that could lean towards a direction.",
        )


def _residual(config: RunConfig) -> Iterator[Problem]:
    """Check a policy that puts what the means leave over into the base."""
    policy, stored = config.policy, config.model.quantization
    if stored != "none":
        yield conflict(
            key="model.quantization",
            message=f'"{stored}" cannot be used together with {policy}: what the means of factors '
            "leave over is added to the base's weights, and would be rounded away.",
            hint='Set it to "none", or use policy "flexlora", which leaves the base alone.',
        )
    if config.link.down != "fp32":
        yield conflict(
            key="link.down",
            message=f'"{config.link.down}" cannot be used together with {policy}: clients would '
            "train from rounded factors above a residual of other ones.",
            hint="Leave link.down out; link.up may be coded.",
        )
    if config.stopping.on != "loss":
        yield conflict(
            key="stopping.on",
            message=f'"{config.stopping.on}" cannot be used together with {policy}: it compares '
            "adapters on one base, and here the base differs from round to round.",
            hint='Set it to "loss".',
        )
    if config.devices.ranks:
        yield conflict(
            key="devices.ranks",
            message=f"cannot be used together with {policy}: factors of different ranks have no "
            "mean of which anything could be left over.",
            hint='Use policy "flexlora".',
        )


def _alternating(config: RunConfig) -> Iterator[Problem]:
    """Check a policy that sends another factor in every other round."""
    policy, privacy = config.policy, config.privacy
    if privacy.mode == "client-central" and privacy.mechanism == "correlated":
        yield conflict(
            key="privacy.mechanism",
            message=f"correlated cannot be used together with {policy}: noise of one round is "
            "taken back in the next, which releases another factor.",
            hint='Use "gaussian" noise, or policy "ffa".',
        )
    if privacy.mode == "client-central" and privacy.clipping_quantile is not None:
        yield conflict(
            key="privacy.clipping_quantile",
            message=f"cannot be used together with {policy}: one clip would follow the norms of "
            "two factors in turn, which are of different sizes.",
            hint="Fix clipping_norm.",
        )
    if config.audit.client_canaries > 0:
        yield conflict(
            key="audit.client_canaries",
            message=f"cannot be used together with {policy}: a canary's direction has the length "
            "of one factor, and rounds alternate.",
            hint="Use audit.canaries, which plants records.",
        )


def _refactoring(config: RunConfig) -> Iterator[Problem]:
    """Check a product that is written as other factors now and then."""
    key, privacy = "aggregation.refactor_every", config.privacy
    if config.policy != "ffa":
        yield conflict(
            key=key,
            message=f'has no meaning with aggregation.policy "{config.policy}": it turns the '
            "frozen A of ffa, and every other policy moves A by itself.",
            hint='Leave refactor_every out, or use policy "ffa".',
        )
        return
    if privacy.mode == "client-central" and privacy.mechanism == "correlated":
        yield conflict(
            key=key,
            message="cannot be used together with correlated noise: noise of one round is taken "
            "back in the next, in the coordinates of another basis, where it adds up instead.",
            hint='Use "gaussian" noise, or leave refactor_every out.',
        )
    if config.devices.ranks:
        yield conflict(
            key=key,
            message="cannot be used together with devices.ranks: columns that only some clients "
            "train become mixtures of all columns in the next basis.",
        )
    if config.server.averaging > 0:
        yield conflict(
            key=key,
            message="cannot be used together with server.averaging: factors in different bases "
            "have no mean.",
        )
    if config.buffer.used:
        yield conflict(
            key=key,
            message="cannot be used together with buffer.size: a late update is a change of B in "
            "the basis of an earlier round.",
            hint="Use synchronous rounds, or leave refactor_every out.",
        )
    if config.link.feeds_back:
        yield conflict(
            key=key,
            message='cannot be used together with link.up "topk": what a client did not send '
            "belongs to the basis of an earlier round.",
            hint='Use "int8" or "int4".',
        )
    if config.audit.client_canaries > 0:
        yield conflict(
            key=key,
            message="cannot be used together with audit.client_canaries: a canary's direction is "
            "one direction of B for the whole run, and the basis changes.",
            hint="Use audit.canaries, which plants records.",
        )


def policy_warnings(config: RunConfig) -> tuple[str, ...]:
    """Return what is allowed about a policy and still worth knowing."""
    found: list[str] = []
    if not config.policy_facts.linear and config.privacy.mode == "example":
        found.append(
            f"{config.policy} multiplies each client's noised factors before the mean: the product "
            "of the noise in A and in B falls with the number of clients, where under fedavg it "
            "falls with its square, and under ffa there is none."
        )
    if config.policy_facts.kept:
        found.append(SHARE_WARNING)
    return tuple(found)
