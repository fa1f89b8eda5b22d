"""Checks and measures the CUDA engines on a GPU: `python -m bench.gpu --out FOLDER`. See README.md beside this."""
