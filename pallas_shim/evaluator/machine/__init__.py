"""The machine: programs of devices and cores under one scheduler, their meetings and semaphores.

The programs run one at a time, each on its own frame. A switch happens only at a wait that can't be
served yet. `scheduler` runs the programs. `regions` makes generators of the regions that wait.
`rows` gives memory that other programs reach an axis for the programs.
"""
