"""The one way to refuse: what can't be done raises a `Refusal`, and lowering says where."""

from __future__ import annotations


class Refusal(Exception):
    """Something that can't be done here; the message says what.

    Lowering turns each into an `Unsupported` with the primitive and the line that it is about.
    """
