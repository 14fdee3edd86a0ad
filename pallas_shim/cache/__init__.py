"""Programs kept on disk, so that the next process need not trace.

`key` says which program a call runs, from all that tracing it would depend on; `encode` turns
programs into bytes and back; `store` keeps the bytes in files.
"""
