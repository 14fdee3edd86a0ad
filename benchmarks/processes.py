"""Starts measured processes, ends them at their limit, and keeps their figures."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping

import numpy as np
from ways import WAYS, Way

HERE = pathlib.Path(__file__).parent

# The figures of one process. If there are none, "failed" or "limit" gives the reason.
Figures = dict[str, float | str]


@dataclasses.dataclass(frozen=True)
class Processes:
    """Starts measured processes, or recalls the figures from an earlier run.

    kept: the directory for figures, results and caches. A process with the same sources, settings
        and versions isn't measured again.
    sources: the source file of each kernel.
    seconds: the time for which warm calls are repeated.
    limit: the seconds after which a process is ended.
    """

    kept: pathlib.Path
    sources: Mapping[str, pathlib.Path]
    seconds: float
    limit: float

    def run(self, kernel: str, way: str, number: int) -> tuple[Figures, list[np.ndarray] | None]:
        """The figures and results of the ``number``-th process of a kernel in a way."""
        place = self._place(kernel, way)
        figures_path, results_path = place / f"{number}.json", place / f"{number}.npz"
        if not figures_path.exists():
            place.mkdir(parents=True, exist_ok=True)
            if WAYS[way].cache is not None and not (place / "cache").exists():
                self._start(kernel, WAYS[way], way, place, place / "filling.npz")
            figures = self._start(kernel, WAYS[way], way, place, results_path)
            figures_path.write_text(json.dumps(figures))
        return json.loads(figures_path.read_text()), _load(results_path)

    def forget(self, kernel: str, way: str) -> None:
        """Forgets the figures of a kernel in a way, so that it is measured again."""
        shutil.rmtree(self._place(kernel, way), ignore_errors=True)

    def _start(
        self, kernel: str, way: Way, key: str, place: pathlib.Path, results: pathlib.Path
    ) -> Figures:
        command = [sys.executable, str(HERE / "measure.py"), kernel, key, str(results)]
        try:
            done = subprocess.run(
                [*command, str(self.seconds)],
                env=way.environment(place / "cache"),
                capture_output=True,
                text=True,
                timeout=self.limit,
            )
        except subprocess.TimeoutExpired:
            return {"limit": self.limit}
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            return {"failed": lines[-1]}
        return json.loads(done.stdout.splitlines()[-1])

    def _place(self, kernel: str, way: str) -> pathlib.Path:
        digest = hashlib.sha256(
            repr((WAYS[way], self.seconds, self.limit, sys.version, _VERSIONS)).encode()
        )
        paths = [self.sources[kernel], HERE / "measure.py"]
        if WAYS[way].shim or WAYS[way].stages:
            paths += sorted((HERE.parent / "pallas_shim").rglob("*.py"))
        for path in paths:
            digest.update(path.read_bytes())
        name = re.sub(r"\W+", "-", kernel)
        return self.kept / name / f"{way}-{digest.hexdigest()[:12]}"


_VERSIONS = [importlib.metadata.version(name) for name in ("jax", "jaxlib", "numpy")]


def _load(path: pathlib.Path) -> list[np.ndarray] | None:
    if not path.exists():
        return None
    with np.load(path) as arrays:
        return [arrays[name] for name in arrays.files]
