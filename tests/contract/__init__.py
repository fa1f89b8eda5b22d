"""What a cached model gives, whatever the model and the engine: held against the oracles and a published run."""
