"""With this directory on PYTHONPATH, Python starts with the shim. See sitecustomize.py."""
