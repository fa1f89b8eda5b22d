"""Who runs the pieces: Inductor's code, captures, and the graph with the branch inside."""
