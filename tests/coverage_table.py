"""docs/coverage.md: each primitive that JAX and Pallas define, and how it runs.

    python -m tests.coverage_table           # rewrites the installed JAX's part
    python -m tests.coverage_table --check   # fails if that would change the file

The primitives come from the installed JAX. What the table says of other versions stays.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.export
from jax._src import core
from jax.experimental import checkify, pallas, xla_metadata  # noqa: F401
from jax.experimental.pallas import tpu, tpu_sc, triton  # noqa: F401

from pallas_shim.evaluator import refused, rules
from pallas_shim.jax_compat.jaxprs import primitive_name

with contextlib.suppress(ImportError):  # JAX < 0.11 has none
    import jax.experimental.overlap  # noqa: F401

TABLE = Path(__file__).parent.parent / "docs" / "coverage.md"

HEAD = """\
# Coverage

How each primitive runs. `python -m tests.coverage_table` writes this table from the installed JAX,
and a test compares the two.

- **rule**: a NumPy function, chosen for the operands' types when the kernel is lowered.
- **composed**: other primitives, a loop or a branch of the program, or an access to memory.
- **callback**: XLA runs the function around the kernel, and calls the evaluator for the kernel.
  Inside a kernel such a primitive is refused.
- **refused**: JAX runs the kernel, and the report names the primitive and the reason.

A rule may refuse a case of its primitive; the report names that too.
"""

# The first that fits. SparseCore's modules lie among those of Pallas TPU.
SECTIONS = {
    "JAX": r"jax\._src\.(?!pallas\.)",
    "Pallas": r"jax\._src\.pallas\.\w+$",
    "Pallas Triton": r"jax\._src\.pallas\.triton\.",
    "Pallas TPU, SparseCore": r"jax\._src\.pallas\.mosaic\.sc_",
    "Pallas TPU": r"jax\._src\.pallas\.(mosaic|fuser)\.",
}

NOTES = {
    "for debugging: nothing; else refused, as by jit": "check",
    "of semaphores": "get_global",
    "see [limits](limits.md)": (
        "core_map mpmd_map dma_start dma_wait semaphore_signal semaphore_wait "
        "prng_seed prng_random_bits stochastic_round"
    ),
}


def installed() -> Iterator[tuple[str, str]]:
    """The section and the name of each primitive of this JAX."""
    homes: dict[core.Primitive, set[str]] = {}
    for name, module in list(sys.modules.items()):
        for value in list(vars(module).values()) if name.startswith("jax._src.") else ():
            if isinstance(value, core.Primitive):
                homes.setdefault(value, set()).add(name)
    for primitive, modules in homes.items():
        for section, pattern in SECTIONS.items():
            if any(re.match(pattern, module) for module in modules):
                yield section, primitive_name(primitive)
                break


def outcome(primitive: str) -> str:
    """How a primitive runs, and why.

    Raises:
      KeyError: it has neither a rule nor a reason to have none.
    """
    note = next((f" ({note})" for note, names in NOTES.items() if primitive in names.split()), "")
    if primitive in rules.IMPL_RULES:
        return f"rule{note}"
    if primitive in rules.LOWERING_RULES:
        return f"composed{note}"
    if primitive in refused.BY_XLA:
        return f"callback: {refused.BY_XLA[primitive]}"
    if primitive not in refused.NOWHERE:
        raise KeyError(f"{primitive} has neither a rule nor an entry in evaluator/refused.py")
    return f"refused: {refused.NOWHERE[primitive]}"


def parsed(text: str) -> dict[tuple[str, str], set[str]]:
    """The versions that have each primitive, by section and name."""
    found = {}
    section = ""
    for line in text.splitlines():
        if line.startswith("## "):
            section = line[3:]
        elif line.startswith("| `"):
            name, versions, _ = (cell.strip() for cell in line.strip("|").split("|"))
            found[section, name.strip("`")] = set(versions.split(", "))
    return found


def table(old: str) -> str:
    """The whole file, with the part of the installed JAX rewritten."""
    found = {key: versions - {jax.__version__} for key, versions in parsed(old).items()}
    for key in installed():
        found.setdefault(key, set()).add(jax.__version__)
    lines = [HEAD.rstrip()]
    for section in SECTIONS:
        lines += ["", f"## {section}", "", "| primitive | JAX | |", "| --- | --- | --- |"]
        for (where, name), versions in sorted(found.items()):
            if where == section and versions:
                shown = ", ".join(sorted(versions, key=lambda v: [int(n) for n in v.split(".")]))
                lines.append(f"| `{name}` | {shown} | {outcome(name)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    rules.load()
    old = TABLE.read_text() if TABLE.exists() else ""
    new = table(old)
    if "--check" not in sys.argv[1:]:
        TABLE.write_text(new)
    elif new != old:
        sys.exit(f"{TABLE} isn't up to date: run python -m tests.coverage_table")


if __name__ == "__main__":
    main()
