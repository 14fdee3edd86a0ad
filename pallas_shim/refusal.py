"""The base class of all refusals. Lowering adds the user's source line."""

from __future__ import annotations


class Refusal(Exception):
    """Something that can't be done here; the message says what.

    Lowering turns each into an `Unsupported` with the primitive and the line that it is about.
    """


class Inexact(Exception):
    """A program was to have the same bits as XLA's, and for these numbers it may not."""
