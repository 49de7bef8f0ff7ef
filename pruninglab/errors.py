"""The three ways in which something goes wrong. Every message says what was wrong, what was expected and what to do."""


class ConfigError(ValueError):
    """What was asked for is wrong: an unknown name, a value out of range, a target that arithmetic rules out."""


class DataError(ValueError):
    """What was read is wrong: a missing or damaged file, an empty split, a label out of range."""


class RunError(RuntimeError):
    """What happened is wrong: a checkpoint that belongs to another run, a step that cannot go on."""
