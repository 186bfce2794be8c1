"""What a person asked ``fedslm audit run`` for, checked before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shared.errors import UsageError

DEVICES = ("cpu", "cuda")
CONTROLS = ("none", "leak", "twin")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The arguments of ``fedslm audit run``.

    Attributes:
        run_dir: a finished run, or None for an adapter from elsewhere.
        profile: which audits run and how hard they try.
        only: audits to run instead of the profile's; empty for all of them.
        control: the positive control: one of :data:`CONTROLS`, a twin's folder, or None for the
            profile's default.
        adapter: a PEFT folder from elsewhere.
        base: its base model.
        members: texts that it was trained on.
        nonmembers: texts of the same kind that it was not trained on.
        max_length: most tokens of one of these texts, as in training.
        template: how prompt and response were joined in training.
        quantization: how the base of an adapter from elsewhere is stored.
        revision: commit of a base on the hub.
        device: where the base of an adapter from elsewhere lives.
        columns: which columns of its files hold text, prompt and response; by default ``text``, or
            ``prompt`` with ``response``.
        queries: labelled queries for query-privacy.
        prompts: system prompts to protect.
        attacks: more prompt-extraction attacks.
        ledger: the shared ledger that the run charged.
        out: where the report goes.
        key: file of the key that signs it.
    """

    run_dir: Path | None = None
    profile: str = "smoke"
    only: tuple[str, ...] = ()
    control: str | None = None
    adapter: Path | None = None
    base: str | None = None
    members: Path | None = None
    nonmembers: Path | None = None
    max_length: int = 128
    template: str = "plain"
    quantization: str = "none"
    revision: str | None = None
    device: str = "cpu"
    columns: tuple[str | None, str | None, str | None] = (None, None, None)
    queries: Path | None = None
    prompts: Path | None = None
    attacks: Path | None = None
    ledger: str | None = None
    out: Path | None = None
    key: Path | None = None

    def __post_init__(self) -> None:
        """Refuse what does not go together.

        Raises:
            UsageError: unless exactly one of a run and an adapter is given, with what it needs.
        """
        if (self.run_dir is None) == (self.adapter is None):
            msg = "Give either a run folder or --adapter, not both and not neither."
            hint = "Try: fedslm audit run RUN_DIR, or fedslm audit run --adapter DIR --base MODEL"
            raise UsageError(msg, hint=hint)
        if self.adapter is not None and self.base is None:
            msg = "--adapter without --base."
            raise UsageError(msg, hint="An adapter cannot be read without its base model.")
        if (self.members is None) != (self.nonmembers is None):
            msg = "--members and --nonmembers go together."
            raise UsageError(msg, hint="Split one set of texts at random before training.")
        if self.adapter is None and (self.base is not None or self.members is not None):
            msg = "--base, --members and --nonmembers belong to --adapter."
            raise UsageError(msg, hint="A run folder knows its own base and data.")
        if self.members is None and any(self.columns):
            msg = "--text, --prompt and --response name columns of --members and --nonmembers."
            raise UsageError(msg, hint="Give both files, or leave the columns out.")
        if self.device not in DEVICES:
            msg = f"--device {self.device!r}, expected one of {', '.join(DEVICES)}."
            raise UsageError(msg, hint="The scenario of a run says where it was trained.")
        if self.adapter is not None and self.control in {"leak", "twin"}:
            msg = f"--control {self.control} needs the canaries of a run."
            raise UsageError(msg, hint="Leave it out for an adapter from elsewhere.")

    @property
    def control_or_default(self) -> str:
        """Return the control that was asked for, or the profile's own."""
        if self.control is not None:
            return self.control
        if self.adapter is not None:
            return "none"
        return "leak" if self.profile == "smoke" else "twin"
