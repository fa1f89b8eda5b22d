"""Runs a program on a device. Engines know no stream but by the state that comes with each step."""
