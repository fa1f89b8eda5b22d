"""CUDA: captures, and one graph of them with a branch on the device. The only package that talks to the driver."""
