"""Where drafts come from. Importing this registers the sources."""

from spec_decode.drafters.draft_model import DraftModelSource
from spec_decode.drafters.prompt_lookup import PromptLookup
from spec_decode.drafters.suffix import Suffix

__all__ = ["DraftModelSource", "PromptLookup", "Suffix"]
