"""Programs kept on disk, so that the next process need not trace.

`key` makes a call's key from all that tracing the call depends on. `encode` turns programs into
bytes and back. `store` keeps the bytes in files.
"""
