"""Text on its way between requests and token ids."""
