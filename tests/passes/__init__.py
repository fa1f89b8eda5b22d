"""What is found in a graph and made of it."""
