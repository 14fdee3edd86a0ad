"""Draws the ratios of all kernels as a picture."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from measured import Measured


def draw(kernels: Sequence[Measured], path: pathlib.Path) -> None:
    """Writes a picture of each kernel's ratios, stock over shim. The path's suffix is the format.

    Raises:
      ModuleNotFoundError: Matplotlib isn't installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    # Without a fixed salt, the same figures would give different files.
    matplotlib.rcParams["svg.hashsalt"] = "pallas_shim"
    figure, axes = pyplot.subplots(
        1, 2, sharey=True, figsize=(11, 1.5 + 0.24 * len(kernels)), layout="constrained"
    )
    for column, call in zip(axes, ("first", "warm"), strict=True):
        for way, colour, title in (
            ("stock", "tab:blue", "interpret=True"),
            ("tpu_interpreter", "tab:orange", "InterpretParams"),
        ):
            ratios = [kernel.time_ratio(way, "shim", call) for kernel in kernels]
            shown = [(row, ratio) for row, ratio in enumerate(ratios) if ratio is not None]
            middles = [ratio.middle for _, ratio in shown]
            column.errorbar(
                middles,
                [row for row, _ in shown],
                xerr=(
                    [max(ratio.middle - ratio.low, 0) for _, ratio in shown],
                    [max(ratio.high - ratio.middle, 0) for _, ratio in shown],
                ),
                fmt="o",
                color=colour,
                markersize=4,
                linewidth=1,
                label=f"{title} / shim",
            )
        column.set_xscale("log")
        column.axvline(1, color="grey", linewidth=1)
        column.grid(axis="x", alpha=0.3)
        column.set_title(f"{call} call, times as long as under the shim")
    axes[0].set_yticks(range(len(kernels)), [kernel.name for kernel in kernels], fontsize=8)
    axes[0].invert_yaxis()
    axes[1].legend(loc="best", fontsize=8)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
