"""Python's garbage collector, kept from holding up the event loop."""

from __future__ import annotations

import gc


def spare_what_is_there() -> None:
    """Let collections pass over everything that exists now: call it once, when a node has started.

    A full collection looks at every object, and most of them are modules and models that stay for ever: a third of a
    second now and then, in which nobody is served, and often while many log in, as that makes many objects.
    """
    gc.collect()
    gc.freeze()
