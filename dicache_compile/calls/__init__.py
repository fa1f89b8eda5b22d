"""A call of the compiled model: which stream and step it is of, and the state that its engine gets."""
