"""Checks: what a device would do wrongly with a kernel that gives right values here.

A checked program is the same program, with instructions beside its accesses. Beside each piece of
memory stands a *shadow* that says of each element whether something was written to it, and of the
copies in flight what they touch. Checks that are proven when lowering leave no instruction.

    place.py    which elements an access touches
    shadow.py   shadows of memory and of a kernel's blocks
    run.py      one run: where it stands, what it has found
    lowering.py the instructions beside accesses; what the rules call
    kernel.py   the checks of one kernel: its blocks, its memory, its cells
    verdict.py  runs a program, and decides whether undefined elements matter
"""
