"""Compares verdicts with what a real TPU said: the public record of generated kernels in the
repository aryatschand/JAXBench. See `__main__`."""
