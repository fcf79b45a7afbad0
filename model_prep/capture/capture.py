"""torch.nn.Module -> Graph, through torch.export: what the module computes counts, never what its layers are called.

The captured program is functional ATen, walked once. Tensors that depend on the input are `Poly` values: a quadratic
a*x^2 + b*x + c of one graph node with coefficients per channel, so that arithmetic such as `0.2*y**2 + y/2 + 1` or an
evaluation-mode batch norm becomes one node and not five. Everything else is a constant, evaluated by torch itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn
from torch.export.graph_signature import OutputKind

from he_runtime.errors import ModelError

from ..graph import Graph
from .ops import HANDLERS, SUPPORTED
from .refusals import refusal
from .trace import source_line, trace, unsupported
from .values import Builder, Call, Constant, Poly, Unsupported

__all__ = ["capture"]


def capture(module: nn.Module, example_input: Any, *, input_name: str = "", allow_activations: bool = True) -> Graph:
    """Trace `module` in evaluation mode on `example_input` (B, *shape) into a Graph; weights are copied.

    With `allow_activations` the activations of activations.py become nodes to be replaced later; without, they are
    refused. Raises ModelError (MODEL_UNSUPPORTED) naming the operation, its source line and what is supported.
    """
    example = _example(module, example_input)
    program = trace(module, example)
    placeholder = _user_input(program)
    batch = placeholder.meta["val"].shape[0]
    builder = Builder(allow_activations)
    name = input_name or str(placeholder.name)
    builder.shapes[name] = tuple(example.shape[1:])
    values = _constants(program)
    values[placeholder] = Poly(name, builder.shapes[name], source=name)
    for node in program.graph.nodes:
        if node.op == "call_function":
            values[node] = _evaluate(builder, node, values, batch)
    result = builder.materialize(_output(program, values))
    if result == name:
        raise unsupported("a forward that returns its input as it is; need at least one operation on it")
    return _prune_dead(Graph(name, builder.shapes[name], result, tuple(builder.nodes), builder.arrays))


def _example(module: nn.Module, example_input: Any) -> torch.Tensor:
    """The example in the precision of the module's parameters, since NumPy's default is not torch's."""
    example = torch.as_tensor(example_input).detach()
    if example.ndim < 2 or not example.is_floating_point() or len(example) == 0:
        raise ModelError(
            f"cannot export: got an example input of shape {tuple(example.shape)} and type {example.dtype}, need "
            "floating-point values of shape (batch, *sample)"
        )
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), example.dtype)
    return example.to(dtype)


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
        raise unsupported(f"a forward of {len(users)} tensors; need exactly one")
    found: fx.Node = users[0]
    return found


def _output(program: torch.export.ExportedProgram, values: Mapping[fx.Node, Any]) -> Poly:
    """What forward returns; changes that it makes to its own input are of no consequence, those to buffers are."""
    specs = program.graph_signature.output_specs
    changed = [spec.target for spec in specs if spec.kind is OutputKind.BUFFER_MUTATION]
    if changed:
        raise unsupported(
            f"a forward that changes its buffers {changed}; need a result that depends on the input alone"
        )
    returned = next(node for node in program.graph.nodes if node.op == "output").args[0]
    outputs = [v for v, spec in zip(returned, specs, strict=True) if spec.kind is OutputKind.USER_OUTPUT]
    found = values.get(outputs[0]) if len(outputs) == 1 else None
    if not isinstance(found, Poly):
        raise unsupported("what forward returns; need one tensor that depends on the input")
    return found


def _evaluate(builder: Builder, node: fx.Node, values: Mapping[fx.Node, Any], batch: Any) -> Any:
    target = str(node.target)
    bound = {key: _resolve(value, values) for key, value in _bind(node).items()}
    try:
        if not any(isinstance(value, Poly) for value in _flatten(bound.values())):
            return _fold_constant(node, bound)
        if target == "<built-in function getitem>":
            return bound["0"][bound["1"]]
        if target.startswith("aten.sym_size"):
            return node.meta["val"]
        if target.startswith("aten._assert"):
            return None
        if target not in HANDLERS:
            raise refusal(target)
        call = Call(builder, target, _node_name(node), bound, _sample_shape(node, batch))
        result = HANDLERS[target](call)
        return replace(result, source=call.name) if isinstance(result, Poly) and result.source == "" else result
    except Unsupported as error:
        raise unsupported(
            f"{node.name!r} ({target}) {_place(node)}: {error.why}; need {error.hint or 'one of ' + SUPPORTED}"
        ) from error


def _fold_constant(node: fx.Node, bound: Mapping[str, Any]) -> Any:
    """Evaluate an operation none of whose arguments depends on the input."""

    def plain(value: Any) -> Any:
        if isinstance(value, Constant):
            return value.value
        return [plain(item) for item in value] if isinstance(value, list) else value

    schema = getattr(node.target, "_schema", None)
    arguments = {key: plain(value) for key, value in bound.items()}
    if schema is None:
        return node.target(*arguments.values())  # type: ignore[operator]
    if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
        raise Unsupported("it draws random numbers", "a forward that depends on its input alone")
    if any(isinstance(value, torch.SymInt) for value in _flatten(arguments.values())):
        raise Unsupported("its shape depends on the size of the batch", "constants without a batch axis")
    positional = [arguments.pop(a.name) for a in schema.arguments if not a.kwarg_only and a.name in arguments]
    with torch.no_grad():
        result = node.target(*positional, **arguments)  # type: ignore[operator]
    if not isinstance(result, torch.Tensor):
        return result
    unchanged = [v for v in bound.values() if isinstance(v, Constant) and v.value is result]
    return unchanged[0] if unchanged else Constant(result)


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
    first = shape[0] if len(shape) else 0  # a plain number is no batch, even where it equals the example's
    if isinstance(first, int) or first != batch or any(not isinstance(size, int) for size in shape[1:]):
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


def _place(node: fx.Node) -> str:
    """The line of the user's code, or the module's path where all of the code is torch's (nn.Sequential)."""
    line = source_line(node.meta.get("stack_trace") or "")
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if line or not stack:
        return f"at {line or 'an unknown line'}"
    return f"in module {stack[-1][0]!r}"


def _prune_dead(graph: Graph) -> Graph:
    """Drop nodes that the output does not need, and their arrays."""
    needed = {graph.output}
    for node in reversed(graph.nodes):
        if node.name in needed:
            needed.update(node.inputs)
    nodes = tuple(n for n in graph.nodes if n.name in needed)
    used = {key for n in nodes for key in n.arrays.values()}
    return replace(graph, nodes=nodes, arrays={k: v for k, v in graph.arrays.items() if k in used})
