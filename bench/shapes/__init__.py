"""A small FLUX that draws coloured shapes: what the demo and the benchmarks generate with."""
