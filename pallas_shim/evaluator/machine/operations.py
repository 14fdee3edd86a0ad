"""The names of the machine's own operations."""

# Running programs of devices or cores; and the operations at which a program may wait.
PROGRAMS, AWAIT, MEET, TURN = "programs", "await", "meet", "turn"
# Two that `rows` resolves: another program's ref, and the check of semaphores at a kernel's end.
REMOTE, LEFTOVER = "remote", "leftover"
SIGNAL = "signal"
# In programs that were lowered for any order of copies: a copy that may happen later, a place where
# other programs may run, and the end of a kernel, where all copies end.
COPY, PASS_BY, LAND = "copy_later", "pass_by", "land"
# What such a program notes for those who watch for races.
NOTE = "note"
