"""The names of the machine's own operations."""

# Running programs of devices or cores; and the operations at which a program may wait.
PROGRAMS, AWAIT, MEET, TURN = "programs", "await", "meet", "turn"
# Two that `rows` resolves: another program's ref, and the check of semaphores at a kernel's end.
REMOTE, LEFTOVER = "remote", "leftover"
SIGNAL = "signal"
