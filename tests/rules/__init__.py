"""Gates, estimators and the config: what decides, and by which numbers."""
