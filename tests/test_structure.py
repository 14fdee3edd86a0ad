"""The package as a reader meets it: its names, and the tree of its folders in the docs."""

from __future__ import annotations

import ast
import pathlib
import re
from collections import Counter

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "pallas_shim"


def test_no_two_classes_have_one_name():
    names = Counter(
        node.name
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, count in names.items() if count > 1] == []


def test_the_tree_in_the_docs_is_complete_and_true():
    text = (ROOT / "docs" / "development.md").read_text()
    tree = text.partition("\n## The code\n")[2].split("```")[1]
    assert tree.count("\n") < 50  # it fits on a screen
    named = set(re.findall(r"\w+\.py\b", tree))
    assert named <= {path.name for path in PACKAGE.rglob("*.py")}
    for folder in (PACKAGE, PACKAGE / "evaluator"):
        for path in folder.iterdir():
            if path.suffix == ".py" and path.name != "__init__.py":
                assert path.name in named
            elif path.is_dir() and (path / "__init__.py").exists():
                assert re.search(rf"\b{path.name}/", tree), path
