"""A small Wan that makes clips of moving shapes: the benchmarks' second model, with guidance and so two streams."""
