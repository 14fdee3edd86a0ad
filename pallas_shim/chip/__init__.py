"""What the real TPU compiler says of the kernels that a script reaches, without a TPU.

The user's process only exports kernels (`session`), and never loads libtpu. A second process
(`driver`) hands them to workers, which compile them and may crash (`worker`, `isolation`).
"""
