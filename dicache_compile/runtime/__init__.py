"""What runs: streams and their state, engines, and the step that the compiled model calls."""
