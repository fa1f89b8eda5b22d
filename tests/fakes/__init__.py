"""Stand-ins for a GPU."""
