"""What other libraries tell us while they run. None of them is imported here."""
