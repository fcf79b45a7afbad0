"""torch.nn.Module -> Graph, through torch.export: what the module computes counts, never what its layers are called.

The captured program is functional ATen, walked once. Tensors that depend on the input are `Poly` values: a quadratic
a*x^2 + b*x + c of one graph node with coefficients per channel, so that arithmetic such as `0.2*y**2 + y/2 + 1` or an
evaluation-mode batch norm becomes one node and not five. Everything else is a constant, evaluated by torch itself.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from he_runtime.errors import ModelError, Reason

from .capture_ops import HANDLERS, SUPPORTED
from .capture_values import Builder, Call, Constant, Poly, Unsupported
from .graph import Graph

__all__ = ["capture"]

_TORCH_FOLDER = os.path.dirname(os.path.abspath(torch.__file__))


def capture(module: nn.Module, example_input: Any, *, input_name: str = "", allow_activations: bool = True) -> Graph:
    """Trace `module` in evaluation mode on `example_input` (B, *shape) into a Graph; weights are copied.

    With `allow_activations` the activations of activations.py become nodes to be replaced later; without, they are
    refused. Raises ModelError (MODEL_UNSUPPORTED) naming the operation, its source line and what is supported.
    """
    example = torch.as_tensor(example_input)
    if example.ndim < 2 or not example.is_floating_point():
        raise ModelError(
            f"cannot export: got an example input of shape {tuple(example.shape)} and type {example.dtype}, need "
            "floating-point values of shape (batch, *sample)"
        )
    program = _trace(module, example)
    builder = Builder(allow_activations)
    values = _constants(program)
    placeholder = _user_input(program)
    name = input_name or str(placeholder.name)
    builder.shapes[name] = tuple(example.shape[1:])
    values[placeholder] = Poly(name, builder.shapes[name], source=name)
    output: Any = None
    for node in program.graph.nodes:
        if node.op == "call_function":
            values[node] = _evaluate(builder, node, values, _batch_symbol(placeholder))
        elif node.op == "output":
            output = _single_output(node, values)
    result = builder.materialize(output)
    return _prune_dead(Graph(name, builder.shapes[name], result, tuple(builder.nodes), builder.arrays))


def _trace(module: nn.Module, example: torch.Tensor) -> torch.export.ExportedProgram:
    """Export with a symbolic batch axis; a batch of one would be taken for a constant, so the example is doubled."""
    example = torch.cat([example, example]) if len(example) < 2 else example
    was_training = module.training
    try:
        try:
            return _export(module.eval(), example, strict=False)
        except Exception:  # plain Python such as len(x) fixes the batch; the slower bytecode tracer sees through it
            return _export(module, example, strict=True)
    except Exception as error:  # the tracer raises whatever the user's forward raises, and a dozen types of its own
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelError(
            f"cannot export {type(module).__name__}: torch.export failed ({reason.strip()}); need a forward of one "
            "tensor whose control flow and reshapes do not depend on the values or on the size of the batch",
            Reason.MODEL_UNSUPPORTED,
        ) from error
    finally:
        module.train(was_training)


def _export(module: nn.Module, example: torch.Tensor, *, strict: bool) -> torch.export.ExportedProgram:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside torch's own tracer are no concern of the caller
        batch = torch.export.Dim("batch", min=2)
        program = torch.export.export(module, (example,), dynamic_shapes=({0: batch},), strict=strict)
        functional: torch.export.ExportedProgram = program.run_decompositions({})  # an empty table decomposes nothing
        return functional


def _constants(program: torch.export.ExportedProgram) -> dict[fx.Node, Any]:
    """Placeholders of parameters, buffers and lifted constants, with their values."""
    signature = program.graph_signature
    names = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    stored = {**program.constants, **program.state_dict}
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    return {nodes[key]: Constant(stored[name].detach(), name) for key, name in names.items()}


def _user_input(program: torch.export.ExportedProgram) -> fx.Node:
    users = [n for n in program.graph.nodes if n.op == "placeholder" and n.name in program.graph_signature.user_inputs]
    if len(users) != 1:
        raise ModelError(
            f"cannot export: forward takes {len(users)} tensors, need exactly one", Reason.MODEL_UNSUPPORTED
        )
    found: fx.Node = users[0]
    return found


def _batch_symbol(placeholder: fx.Node) -> Any:
    return placeholder.meta["val"].shape[0]


def _single_output(node: fx.Node, values: Mapping[fx.Node, Any]) -> Poly:
    outputs = node.args[0]
    found = values.get(outputs[0]) if isinstance(outputs, (tuple, list)) and len(outputs) == 1 else None  # type: ignore[arg-type]
    if not isinstance(found, Poly):
        raise ModelError(
            "cannot export: forward must return one tensor that depends on the input", Reason.MODEL_UNSUPPORTED
        )
    return found


def _evaluate(builder: Builder, node: fx.Node, values: Mapping[fx.Node, Any], batch: Any) -> Any:
    target = str(node.target)
    bound = {key: _resolve(value, values) for key, value in _bind(node).items()}
    if not any(isinstance(value, Poly) for value in _flatten(bound.values())):
        return _fold_constant(node, bound)
    try:
        if target == "<built-in function getitem>":
            return bound["0"][bound["1"]]
        if target.startswith("aten.sym_size"):
            return node.meta["val"]
        handler = HANDLERS.get(target)
        if handler is None:
            raise Unsupported("there is no homomorphic form for it")
        call = Call(builder, target, _node_name(node), bound, _sample_shape(node, batch))
        result = handler(call)
        return replace(result, source=call.name) if isinstance(result, Poly) and result.source == "" else result
    except Unsupported as error:
        raise ModelError(
            f"cannot export {node.name!r} ({target}) at {_source_line(node)}: {error.why}; need "
            f"{error.hint or 'one of ' + SUPPORTED}",
            Reason.MODEL_UNSUPPORTED,
        ) from error


def _fold_constant(node: fx.Node, bound: Mapping[str, Any]) -> Any:
    """Evaluate an operation none of whose arguments depends on the input."""

    def plain(value: Any) -> Any:
        if isinstance(value, Constant):
            return value.value
        return [plain(item) for item in value] if isinstance(value, list) else value

    schema = getattr(node.target, "_schema", None)
    arguments = {key: plain(value) for key, value in bound.items()}
    with torch.no_grad():
        if schema is None:
            result = node.target(*arguments.values())  # type: ignore[operator]
        else:
            positional = [arguments.pop(a.name) for a in schema.arguments if not a.kwarg_only and a.name in arguments]
            result = node.target(*positional, **arguments)  # type: ignore[operator]
    if isinstance(result, torch.Tensor):
        unchanged = [v for v in bound.values() if isinstance(v, Constant) and v.value is result]
        return unchanged[0] if unchanged else Constant(result)
    return result


def _bind(node: fx.Node) -> dict[str, Any]:
    """Arguments by schema name; by position ("0", "1") where the target has no schema."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {str(i): value for i, value in enumerate(node.args)} | dict(node.kwargs)
    bound = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    bound.update({a.name: value for a, value in zip(schema.arguments, node.args, strict=False)})
    return bound | dict(node.kwargs)


def _resolve(value: Any, values: Mapping[fx.Node, Any]) -> Any:
    if isinstance(value, fx.Node):
        return values[value]
    if isinstance(value, (list, tuple)):
        return [_resolve(item, values) for item in value]
    return value


def _flatten(values: Any) -> list[Any]:
    return [leaf for v in values for leaf in (_flatten(v) if isinstance(v, list) else [v])]


def _sample_shape(node: fx.Node, batch: Any) -> tuple[int, ...]:
    """The output's shape without its batch axis, which must still be the first and still be the batch."""
    value = node.meta.get("val")
    value = value[0] if isinstance(value, (tuple, list)) else value
    shape: Any = getattr(value, "shape", ())
    if len(shape) == 0 or shape[0] != batch or any(not isinstance(size, int) for size in shape[1:]):
        raise Unsupported(
            f"it mixes the samples of a batch (its output has shape {tuple(str(s) for s in shape)})",
            "operations that keep the first axis as the batch, such as x.flatten(1)",
        )
    return tuple(int(size) for size in shape[1:])


def _node_name(node: fx.Node) -> str:
    """The module's path for a layer of torch.nn, the enclosing path plus the operation for a functional call."""
    operation = str(node.target).split(".")[1] if "." in str(node.target) else node.name
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack:
        return operation
    path, kind = stack[-1][0], str(stack[-1][1])
    if path and "torch.nn.modules" in kind:
        return str(path)
    return f"{path}.{operation}" if path else operation


def _source_line(node: fx.Node) -> str:
    """ "file.py:12 `code`" of the innermost frame outside torch."""
    found = "an unknown line"
    lines = (node.meta.get("stack_trace") or "").splitlines()
    for index, line in enumerate(lines):
        if not line.strip().startswith('File "'):
            continue
        path, rest = line.strip()[6:].split('"', 1)
        if not path.startswith((_TORCH_FOLDER, "torch/")):
            number = rest.split("line ", 1)[-1].split(",")[0]
            code = lines[index + 1].strip() if index + 1 < len(lines) else ""
            found = f"{path}:{number} `{code}`"
    return found


def _prune_dead(graph: Graph) -> Graph:
    """Drop nodes that the output does not need, and their arrays."""
    needed = {graph.output}
    for node in reversed(graph.nodes):
        if node.name in needed:
            needed.update(node.inputs)
    nodes = tuple(n for n in graph.nodes if n.name in needed)
    used = {key for n in nodes for key in n.arrays.values()}
    return replace(graph, nodes=nodes, arrays={k: v for k, v in graph.arrays.items() if k in used})
