"""What a model file may contain, checked before torch loads it.

Loading TorchScript compiles and can run the code inside it, which may write files; loading a
torch.export program evaluates the symbolic expressions inside it as Python. So both archives are
read as data first, and refused unless they hold only what exports of our networks hold.
"""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
from typing import Any

from artifacts.errors import BundleError
from artifacts.manifest import EXPORT, TORCHSCRIPT

# The operators of our networks, by their ATen names. None of them touches anything but tensors.
# A new kind of layer adds its own here; without it, the gate refuses to release the model.
ALLOWED_OPERATORS = frozenset(
    [
        "_assert_tensor_metadata",
        "add",
        "batch_norm",
        "cat",
        "clamp",
        "div",
        "dropout",
        "flatten",
        "gelu",
        "isnan",
        "leaky_relu",
        "linear",
        "mul",
        "relu",
        "silu",
        "softmax",
        "sub",
        "tanh",
        "to",
        "where",
        "zeros_like",
    ]
)
_ALLOWED_FUNCTIONS = {"annotate", "getattr"}
_SYMBOL = re.compile(r"Symbol\('s\d+', positive=True, integer=True\)|s\d+|\d+")
_EXPORT_ENTRIES = re.compile(
    r"[^/]+/(archive_format|archive_version|byteorder|version|\.data/\w+|\.format_version"
    r"|models/model\.json|data/(weights|constants)/\w+(\.json)?|data/sample_inputs/model\.pt)"
)


def vet_torchscript(payload: bytes) -> None:
    """Raise BundleError unless the code in a TorchScript archive only calls allowed operators."""
    for name, data in _entries(payload, TORCHSCRIPT).items():
        if not name.endswith(".py"):
            continue
        try:
            tree = ast.parse(data)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise BundleError(f"{TORCHSCRIPT}: {name} is not TorchScript code") from error
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name != "forward":
                raise _refused(TORCHSCRIPT, f"a method {node.name}")
            if isinstance(node, ast.Call) and not _call_is_allowed(node.func):
                raise _refused(TORCHSCRIPT, f"a call of {ast.unparse(node.func)[:80]}")


def vet_export(payload: bytes) -> None:
    """Raise BundleError unless a torch.export archive holds a plain graph and plain tensors."""
    for name, data in _entries(payload, EXPORT).items():
        if not _EXPORT_ENTRIES.fullmatch(name):
            raise _refused(EXPORT, f"the entry {name[:80]}")
        if not name.endswith(".json"):
            continue
        try:
            content = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{EXPORT}: {name} is not JSON") from error
        _vet_graph(content)


def _vet_graph(value: Any) -> None:
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, list):
            pending.extend(item)
        if not isinstance(item, dict):
            continue
        pending.extend(item.values())
        if item.get("use_pickle"):
            raise _refused(EXPORT, "a pickled tensor")
        if item.get("guards_code"):
            raise _refused(EXPORT, "guard code")
        expressions = [item["expr_str"]] if "expr_str" in item else []
        expressions += list(item.get("range_constraints") or ())
        for expression in expressions:
            if not isinstance(expression, str) or not _SYMBOL.fullmatch(expression):
                raise _refused(EXPORT, f"the expression {str(expression)[:80]!r}")
        target = item.get("target")
        if isinstance(target, str) and "inputs" in item:
            namespace, _, rest = target.partition("torch.ops.aten.")
            if namespace or rest.split(".")[0] not in ALLOWED_OPERATORS:
                raise _refused(EXPORT, f"the operator {target[:80]}")


def _call_is_allowed(function: ast.expr) -> bool:
    if isinstance(function, ast.Name):
        return function.id in _ALLOWED_FUNCTIONS
    if not isinstance(function, ast.Attribute):
        return False
    if isinstance(function.value, ast.Name) and function.value.id == "torch":
        return function.attr in ALLOWED_OPERATORS
    return function.attr == "forward"


def _entries(payload: bytes, file: str) -> dict[str, bytes]:
    """Every entry's name; the content of those that are code or JSON."""
    try:
        with zipfile.ZipFile(io.BytesIO(payload)) as archive:
            names = archive.namelist()
            if len(set(names)) != len(names):
                raise _refused(file, "an entry twice")
            if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
                raise _refused(file, "a compressed entry")
            return {
                name: archive.read(name) if name.endswith((".py", ".json")) else b""
                for name in names
            }
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise BundleError(f"{file}: cannot load it: not an archive: {error}") from error


def _refused(file: str, what: str) -> BundleError:
    return BundleError(f"{file}: cannot load it: it holds {what}, which no exported network needs")
