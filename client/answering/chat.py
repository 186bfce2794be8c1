"""The chat template that lies beside an export's base, for whoever answers without transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from client.chatturn import as_question
from client.edge.chat import ChatTemplate
from client.edge.program import CHAT
from shared.errors import TokenizerMissing

if TYPE_CHECKING:
    from pathlib import Path

    from client.edge.chat import Messages


class ExportedChat:
    """Renders what is asked as training with ``data.template = "chat"`` showed it.

    Args:
        folder: of a verified export.

    Attributes:
        chat_template: None where the base has none.

    Raises:
        TokenizerMissing: if the file is no template.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / CHAT
        self.chat_template: ChatTemplate | None = None
        if not path.exists():
            return
        try:
            self.chat_template = ChatTemplate.from_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            msg = f"{CHAT} of the export cannot be read ({type(error).__name__})."
            raise TokenizerMissing(msg, hint="Export it again.") from None

    def apply_chat_template(
        self, messages: Messages, *, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        """Return the text of a conversation; arguments as transformers has them."""
        if self.chat_template is None or tokenize:
            msg = "The export has no chat template."
            raise TokenizerMissing(msg, hint="Ask without --chat.")
        return self.chat_template.render(messages, add_generation_prompt=add_generation_prompt)

    def turn(self, question: str) -> str:
        """Return the text of a question up to where the answer begins; errors as ``Engine.ask``."""
        return as_question(question, self)
