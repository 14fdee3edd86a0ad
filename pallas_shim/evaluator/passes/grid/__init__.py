"""Grid batching, and what only it needs: cells of a grid, or rounds of a loop, at once."""
