"""What the oracle said of each mutant, kept in a file."""

from __future__ import annotations

import json
import pathlib

from tests.mutation import pool
from tests.mutation.oracle import Worker

FILE = pathlib.Path(__file__).with_name("verdicts.json")


def read() -> dict[str, dict[str, list[str]]]:
    """By kernel and mutant: the verdict, and why."""
    return json.loads(FILE.read_text()) if FILE.exists() else {}


def judge(names: list[str]) -> None:
    """Asks the oracle about all mutants of these kernels that the file doesn't have."""
    worker = Worker()
    try:
        for name in names:
            known = read()
            made = list(pool.Pooled(name).mutants)
            old = known.get(name, {})
            known[name] = {key: old[key] for key in made if key in old}
            for number, key in enumerate(made):
                if key in old:
                    continue
                verdict, notes = worker.judge(name, number)
                known[name][key] = [verdict.verdict, verdict.because]
                print(name, key, verdict, *notes, sep="; ", flush=True)
                FILE.write_text(json.dumps(known, indent=0, sort_keys=True) + "\n")
    finally:
        worker.close()
