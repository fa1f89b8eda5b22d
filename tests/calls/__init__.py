"""Which model, stream, run and step a call is of, and what is kept from one to the next."""
