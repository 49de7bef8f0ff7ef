"""Which tests go to one worker: the cells of a notebook, in their order, and what shares something that takes long."""

from xdist.scheduler import LoadScopeScheduling

WHOLE = (".ipynb", "test_browser.py", "test_claims.py", "test_faults.py", "test_themes.py")
"""One kernel, one server with its browser, one training, one process that forks. What has many tests begins first, so
that no worker waits."""
NETWORK = "test_structured.py::test_equal_logits_and_no_layer_emptied["
"""Followed by a network and a share: the groups of a network are found once."""


class Together(LoadScopeScheduling):
    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        if NETWORK in nodeid:
            return nodeid.rpartition("-")[0]
        return file if file.endswith(WHOLE) else nodeid
