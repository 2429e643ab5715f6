"""What a completion answers, and which answers are the same."""
