"""Imports point one way, as docs/architecture.md draws them, and the command line answers before torch is there."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib.metadata import requires
from pathlib import Path

import labelemb

SOURCE = Path(labelemb.__file__).parent
FILES = {
    ".".join(("labelemb", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(SOURCE.rglob("*.py"))
}
HEAVY = {"datasets", "matplotlib", "numpy", "pandas", "pyarrow", "scipy", "sklearn", "tokenizers", "PIL"}
HEAVY |= {"sacrebleu", "rouge_score", "onnx", "onnxruntime", "onnxscript"}
LIBRARY = {"losses"}
# Who may import whom: a line a folder, as docs/architecture.md draws it. All may import the modules beside the folders.
MAY_IMPORT = {
    "losses": set[str](),
    "integrations": {"losses"},
    "settings": {"losses.catalogue"},
    "training": {"settings", "losses"},
    "classify": {"training", "settings", "losses"},
    "text": {"training", "settings", "losses"},
    "experiments": {"classify", "text", "training", "settings"},
    "report": {"settings", "losses.catalogue"},
    "commands": {"experiments", "report", "classify", "text", "training", "settings", "losses"},
}


def folder(module: str) -> str:
    """The folder in which a module of the package stands, "" for those beside the folders."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in MAY_IMPORT else ""


def imports(path: Path, *, of_types: bool = False) -> Iterator[tuple[str, bool]]:
    """Every module that a file imports, and whether at its top: under `if TYPE_CHECKING` only if asked for."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in for_types and not of_types:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node in tree.body) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            assert node.module is not None
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield (inner if inner in FILES else node.module), node in tree.body


def inner_imports(module: str) -> set[str]:
    own = {name for name, _ in imports(FILES[module], of_types=True) if name.split(".")[0] == "labelemb"}
    return own - {"labelemb"}


def outer_imports(module: str, *, at_top: bool) -> set[str]:
    return {name.split(".")[0] for name, top in imports(FILES[module]) if top or not at_top} - {"labelemb"}


def test_every_folder_imports_only_from_those_it_may() -> None:
    assert {folder(module) for module in FILES} == {*MAY_IMPORT, ""}
    for module in FILES:
        for imported in inner_imports(module):
            assert imported in FILES, f"{module} imports {imported}, which is not there"
            own, other = folder(module), folder(imported)
            if own and other not in (own, ""):
                allowed = other in MAY_IMPORT[own] or imported.removeprefix("labelemb.") in MAY_IMPORT[own]
                assert allowed, f"{module} imports {imported}"
            if not own and module not in ("labelemb", "labelemb.__main__"):
                assert not other, f"{module}, which all may import, imports {imported}"


def test_there_is_no_circle() -> None:
    for_types_too = {module: inner_imports(module) for module in FILES if module != "labelemb"}
    TopologicalSorter(for_types_too).prepare()  # CycleError names a circle


def test_the_package_itself_is_imported_for_its_version_alone() -> None:
    for module, path in FILES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module == "labelemb":
                names = {alias.name for alias in node.names if f"labelemb.{alias.name}" not in FILES}
                assert names <= {"__version__"}, f"{module}:{node.lineno}"


def test_the_library_needs_torch_alone() -> None:
    allowed = set(sys.stdlib_module_names) | {"torch"}
    for module in FILES:
        if folder(module) in LIBRARY:
            assert outer_imports(module, at_top=True) <= allowed, module
            assert outer_imports(module, at_top=False) <= allowed | {"safetensors", "numpy"}, module


def test_settings_report_and_command_line_name_no_torch_at_their_top() -> None:
    for module in FILES:
        if folder(module) in ("", "settings", "experiments", "commands") or module in (
            "labelemb.losses.catalogue",
            "labelemb.losses.mode",
        ):
            assert not outer_imports(module, at_top=True) & (HEAVY | {"torch", "safetensors"}), module
        if folder(module) == "report":
            assert "torch" not in outer_imports(module, at_top=False), module


def test_heavy_packages_are_imported_where_they_are_used() -> None:
    late = HEAVY - {"numpy"}
    for module in FILES:
        if folder(module) != "report":
            assert not outer_imports(module, at_top=True) & late, module


def test_inner_init_files_are_empty() -> None:
    for path in SOURCE.rglob("*/__init__.py"):
        assert not path.read_text(encoding="utf-8"), path


def test_everything_imported_is_a_declared_dependency() -> None:
    names = {"PIL": "pillow", "yaml": "pyyaml", "sklearn": "scikit-learn"}
    declared = {
        requirement.split(">")[0].split(";")[0].split("[")[0].strip().lower().replace("-", "_")
        for requirement in requires("labelemb") or []
    }
    imported = {name for module in FILES for name in outer_imports(module, at_top=False)}
    outside = imported - set(sys.stdlib_module_names) - {"timm"}  # the user's own
    assert {names.get(name, name).lower().replace("-", "_") for name in outside} <= declared


def test_nothing_but_training_imports_torch() -> None:
    """One process for all: help, version, recipes, a dry run, usage errors and a bad setting."""
    script = """
import sys
from labelemb import __main__ as cli
for arguments in (["--help"], ["train", "--help"], ["--version"], ["recipes"], ["recipes", "digits"], [],
                  ["nonsense"], ["train"], ["train", "digits", "--nonsense"], ["train", "digits", "epoch=3"],
                  ["train", "nowhere"], ["train", "digits", "--dry-run"], ["compare", "digits", "--dry-run"],
                  ["compare", "digits", "--runs", "0"], ["compare", "digits", "--jobs", "0"],
                  ["train", "digits", "--mode", "emb-start"], ["neighbors", "nowhere"]):
    cli.run(arguments)
    heavy = {"torch", "datasets", "matplotlib", "sklearn", "scipy", "numpy"} & set(sys.modules)
    assert not heavy, (arguments, heavy)
print("all answered")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.endswith("all answered\n")
    assert "Traceback" not in done.stderr
