"""Ours against every other cache: the same models, seeds and process, each system as its own documentation says."""
