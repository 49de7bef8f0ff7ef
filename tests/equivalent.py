"""Mutants that do the same as the code, so that no test could notice them, and why: for `mutation.py`."""

EQUIVALENT: dict[tuple[str, str, str], str] = {
    (
        "above = {i: float(caps[i]) for i in free if share[i] > caps[i]}",
        "share[i] > caps[i]",
        "share[i] >= caps[i]",
    ): "a share that equals its cap is fixed at what it has",
}
"""The line as it is, what is changed in it, and into what."""
