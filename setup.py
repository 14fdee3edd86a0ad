"""What setup.cfg can't say: two packages from beside pallas_shim/, the start-up files, and the
README as an index shows it."""

import os
import re

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

STARTUP_FILES = ["pallas_shim.pth", "pallas_shim.start"]

# Where the repository is, as https://github.com/OWNER/pallas_shim. The release sets it.
URL = os.environ.get("PALLAS_SHIM_URL", "").rstrip("/")


class BuildWithStartupFiles(build_py):
    """Puts the start-up files at the top of a wheel, so that they land in site-packages.

    (data_files would land in sys.prefix, and in an editable install nowhere.)
    """

    def run(self):
        super().run()
        # An editable wheel leaves out build_lib; what isn't editable goes where install puts it.
        top = self.get_finalized_command("install").install_lib
        for name in STARTUP_FILES:
            source = os.path.join("sitecustomize_pkg", name)
            self.copy_file(source, top if self.editable_mode else self.build_lib)

    def get_outputs(self, include_bytecode=1):
        top = [os.path.join(self.build_lib, name) for name in STARTUP_FILES]
        return super().get_outputs(include_bytecode) + top


def readme():
    """The README with links to files of the repository made whole, or without them if it isn't
    known where that is: an index has no such files."""
    with open("README.md", encoding="utf-8") as file:
        text = file.read()
    whole = rf"[\1]({URL}/blob/main/\2)" if URL else r"\1"
    return re.sub(r"!?\[([^\]]*)\]\((?!\w+:|#)([^)]+)\)", whole, text)


def urls():
    if not URL:
        return {}
    return {
        "Source": URL,
        "Documentation": f"{URL}/blob/main/docs/usage.md",
        "Changelog": f"{URL}/blob/main/CHANGELOG.md",
        "Issues": f"{URL}/issues",
    }


setup(
    packages=[
        *find_packages(include=["pallas_shim", "pallas_shim.*"]),
        "pallas_shim.patches",
        "pallas_shim.sitecustomize_pkg",
    ],
    cmdclass={"build_py": BuildWithStartupFiles},
    long_description=readme(),
    project_urls=urls(),
)
