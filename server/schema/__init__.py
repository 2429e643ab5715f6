"""Request bodies: their fields, types and ranges, and how a violation is reported."""
