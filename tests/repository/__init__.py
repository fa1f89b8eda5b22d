"""What holds of the repository itself: its pages, and what its modules import."""
