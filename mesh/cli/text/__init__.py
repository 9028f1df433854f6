"""What users type and read, as values: durations, sizes, ports, pairs, templates, tables. Pure, and each on its own."""


class TextError(ValueError):
    """What the user typed cannot be read; one sentence that names it."""
