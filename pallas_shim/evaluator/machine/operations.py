"""The names of the machine's own operations."""

# Programs of devices or cores; what one may stand still at.
PROGRAMS, AWAIT, MEET, TURN = "programs", "await", "meet", "turn"
# Until `rows` has resolved them: another program's ref, and semaphores when a kernel ends.
REMOTE, LEFTOVER = "remote", "leftover"
SIGNAL = "signal"
