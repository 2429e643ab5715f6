"""Where drafts come from. Importing this registers the sources that need no model."""

from spec_decode.drafters.prompt_lookup import PromptLookup
from spec_decode.drafters.suffix import Suffix

__all__ = ["PromptLookup", "Suffix"]
