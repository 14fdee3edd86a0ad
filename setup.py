from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["pallas_shim", "pallas_shim.*"]),
        "pallas_shim.patches",
        "pallas_shim.sitecustomize_pkg",
    ]
)
