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

# The operators of our networks and of torchvision's, by their ATen names. None of them touches
# anything but tensors. A new kind of layer adds its own here; without it, the gate refuses to
# release the model.
ALLOWED_OPERATORS = frozenset(
    [
        "_assert_tensor_metadata",
        "_convolution",
        "adaptive_avg_pool2d",
        "adaptive_max_pool2d",
        "add",
        "add_",
        "avg_pool2d",
        "batch_norm",
        "cat",
        "chunk",
        "clamp",
        "contiguous",
        "conv1d",
        "conv2d",
        "div",
        "dropout",
        "dropout_",
        "einsum",
        "eq",
        "expand",
        "fill_",
        "flatten",
        "floor_divide",
        "full_like",
        "gelu",
        "hardsigmoid",
        "hardswish_",
        "hardtanh_",
        "index",
        "index_select",
        "isnan",
        "layer_norm",
        "leaky_relu",
        "linear",
        "masked_fill",
        "matmul",
        "max_pool2d",
        "mean",
        "mul",
        "ne",
        "new_zeros",
        "pad",
        "permute",
        "pow",
        "relu",
        "relu_",
        "remainder",
        "reshape",
        "roll",
        "rsub",
        "scaled_dot_product_attention",
        "select",
        "sigmoid",
        "silu",
        "silu_",
        "size",
        "slice",
        "softmax",
        "split_with_sizes",
        "sqrt",
        "squeeze",
        "sub",
        "swapaxes",
        "sym_size",
        "t",
        "tanh",
        "to",
        "transpose",
        "unflatten",
        "unsqueeze",
        "view",
        "where",
        "zeros_like",
    ]
)
# Products of sizes. The whole names: Python's `operator` has functions that call anything.
_ALLOWED_ARITHMETIC = frozenset(["_operator.mul"])
_ALLOWED_FUNCTIONS = {"annotate", "getattr", "int", "ops.prim.NumToTensor"}
_METHOD = re.compile(r"forward\d*")
# Sizes: whole numbers, symbols for them, and their sums, products, minima and maxima. All that
# evaluating one can call are these constructors of sympy's, with each other as arguments.
_SIZE = r"(?:Symbol\('s\d+', positive=True, integer=True\)|Integer\(\d{1,18}\)|s\d+|\d{1,18})"
_OPERATION = re.compile(rf"(?:Add|Max|Min|Mul)\({_SIZE}(?:, {_SIZE})*\)")
_LONGEST_EXPRESSION = 1000
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
            if isinstance(node, ast.FunctionDef) and not _METHOD.fullmatch(node.name):
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
            if not isinstance(expression, str) or not _is_size(expression):
                raise _refused(EXPORT, f"the expression {str(expression)[:80]!r}")
        target = item.get("target")
        if isinstance(target, str) and "inputs" in item:
            namespace, _, rest = target.partition("torch.ops.aten.")
            known = not namespace and rest.split(".")[0] in ALLOWED_OPERATORS
            if not known and target not in _ALLOWED_ARITHMETIC:
                raise _refused(EXPORT, f"the operator {target[:80]}")


def _is_size(expression: str) -> bool:
    """Whether an expression is whole-number arithmetic, read from the innermost operation out."""
    if len(expression) > _LONGEST_EXPRESSION:
        return False
    found = 1
    while found:
        expression, found = _OPERATION.subn("1", expression)
    return re.fullmatch(_SIZE, expression) is not None


def _call_is_allowed(function: ast.expr) -> bool:
    if ast.unparse(function) in _ALLOWED_FUNCTIONS:
        return True
    if not isinstance(function, ast.Attribute):
        return False
    if isinstance(function.value, ast.Name) and function.value.id == "torch":
        return function.attr in ALLOWED_OPERATORS
    return _METHOD.fullmatch(function.attr) is not None


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
