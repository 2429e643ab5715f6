"""The embedded default models and the recipe that made them.

`models/drafthouse-tiny` and `models/drafthouse-tiny-draft` are ordinary Hugging Face folders;
`python -m models.train` makes them again. Nothing here is imported while serving except `embedded`.
"""
