"""Writes loads, stores and blocks as Python's index expressions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeGuard

from pallas_shim.evaluator.codegen.numbers import Number
from pallas_shim.evaluator.memory import Dynamic, Path
from pallas_shim.evaluator.program import RefType
from pallas_shim.jax_compat.state import Index, Slice

# ``clamped(start, dim, size)`` gives the source of where a slice of ``size`` elements starts in a
# dimension when it has been moved inside: a name or a literal.
Clamped = Callable[[Number, int, int], str]


class Subscript(NamedTuple):
    """The text between the brackets, without trailing dimensions that are taken whole.
    ``is_element``: no dimension is left."""

    parts: tuple[str, ...]
    is_element: bool

    def of(self, ref: str, *, to_view: bool = False) -> str:
        """Its contents in the memory named ``ref``. An element is a scalar, or with ``to_view``, a
        view."""
        parts = [*self.parts, *(["..."] if to_view and self.is_element else [])]
        return f"{ref}[{', '.join(parts) or '()'}]" if parts or self.is_element else ref


def has_key(path: Path | None) -> TypeGuard[Path]:
    """Whether `key_of_path` can say where a path leads: it is one index at most, of slices of
    known sizes."""
    if path is None or len(path) > 1:
        return False
    return all(
        isinstance(step, Index) and all(map(_is_plain, step.dims)) for step in path
    )


def _is_plain(index: Any) -> bool:
    if isinstance(index, Slice):
        known = isinstance(index.size, int) and index.size > 0 and index.stride > 0
        return known and (isinstance(index.start, int) or index.stride == 1)
    return isinstance(index, (int, Dynamic))


def leaves(path: Path) -> int:
    """The number of leaves of a path with a key."""
    dims = [at for step in path if isinstance(step, Index) for at in step.dims]
    return sum(isinstance(at.start if isinstance(at, Slice) else at, Dynamic) for at in dims)


def key_of_path(ref: RefType, path: Path, leaves: Sequence[Number], clamped: Clamped) -> Subscript:
    """The place to which a path with a key leads."""
    if not path:
        return Subscript((), not ref.shape)
    (index,) = path
    assert isinstance(index, Index)
    parts: list[str] = []
    for dim, at in zip(ref.shape, index.dims, strict=True):
        if isinstance(at, Dynamic):
            parts.append(clamped(leaves[at.leaf], dim, 1))
        elif not isinstance(at, Slice):
            parts.append(str(at))
        elif isinstance(at.start, Dynamic):
            parts.append(_span(clamped(leaves[at.start.leaf], dim, at.size), at.size))
        else:
            stop = at.start + (at.size - 1) * at.stride + 1
            parts.append(_slice(at.start, stop, at.stride, dim))
    return _key(parts, not any(isinstance(at, Slice) for at in index.dims))


def key_of_block(
    ref: RefType, block: Sequence[Any], leaves: Sequence[Number], clamped: Clamped
) -> Subscript:
    """The place of a block; ``block`` is as in `blocks.block_viewer`."""
    parts: list[str] = []
    for dim, at in zip(ref.shape, block, strict=True):
        if isinstance(at, slice):
            parts.append(_slice(at.start, at.stop, 1, dim))
        elif isinstance(at, int):
            parts.append(str(at))
        else:
            leaf, scale, _, size, squeezed = at
            number = leaves[leaf]
            if scale != 1:
                text = f"{number.text} * {scale}"
                number = Number(text, number.low * scale, number.high * scale)
            start = clamped(number, dim, size)
            parts.append(start if squeezed else _span(start, size))
    whole = [isinstance(at, slice) or isinstance(at, tuple) and not at[-1] for at in block]
    return _key(parts, not any(whole))


def _key(parts: list[str], is_element: bool) -> Subscript:
    while parts and parts[-1] == ":":
        parts.pop()
    return Subscript(tuple(parts), is_element)


def _span(start: str, size: int) -> str:
    return f"{start}:{start} + {size}"


def _slice(start: int, stop: int, stride: int, dim: int) -> str:
    if (start, stop, stride) == (0, dim, 1):
        return ":"
    return f"{start}:{stop}" + (f":{stride}" if stride != 1 else "")
