"""Grid batching: runs cells of a grid, or rounds of a loop, together."""
