"""The shim in other people's tools: pytest and IPython."""
