"""The machine: programs of devices and cores under one scheduler, their meetings and semaphores.

The programs run one at a time, each on a frame of its own, and a switch happens only at a wait
that can't be served. `scheduler` runs them, `regions` makes generators of the regions that wait,
and `sharing` gives memory that other programs reach an axis for the programs.
"""
