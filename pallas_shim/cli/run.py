"""python -m pallas_shim run script.py: the same as without the verb."""

from __future__ import annotations

from typing import NoReturn

from pallas_shim.cli import launch, options


def main(arguments: list[str]) -> NoReturn:
    """Replaces this process by Python with the shim on."""
    about = "Runs an unmodified Pallas script with its kernels in NumPy."
    example = "example: python -m pallas_shim run --tpu v6e --report out.json bench.py"
    parser = options.parser("run", about, example)
    options.add(parser)
    ours, target = options.split(parser, arguments)
    asked = parser.parse_args(ours)
    if not target:
        parser.error("nothing to run")
    options.apply(parser, vars(asked))
    try:
        launch.start(target)
    except launch.CannotStart as error:
        parser.error(str(error))
