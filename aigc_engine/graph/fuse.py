"""The passes in their order."""

from __future__ import annotations

from aigc_engine.graph.capture import Capture
from aigc_engine.graph.constants import Constants, static_nodes
from aigc_engine.graph.passes import (
    batch_norm,
    clean,
    hoist,
    inputs,
    layers,
    merge,
    plain,
    pointwise,
    products,
    views,
)
from aigc_engine.graph.passes.edit import aten, insert


def cast_sources(capture: Capture, constants: Constants) -> None:
    """Casts the module's tensors where the graph was captured in another dtype than they have."""
    for node in [node for node in capture.graph.nodes if node.name in capture.sources]:
        traced, live = node.meta["val"], constants.value(node)
        if traced.dtype != live.dtype:
            first = next(later for later in capture.graph.nodes if later.op != "placeholder")
            cast = insert(first, aten.to.dtype, (node, traced.dtype), {}, traced)
            node.replace_all_uses_with(cast, delete_user_cb=lambda user, made=cast: user is not made)
            node.meta["val"] = traced.to(live.dtype)


def fuse(capture: Capture) -> None:
    """Rewrites a captured graph into our ops, in place; what has no op stays aten's."""
    graph = capture.graph
    clean.remove_dead(graph)
    plain.use_plain(graph)
    views.use_views(graph)
    clean.undo_transposes(graph)
    clean.merge_equal(graph)
    inputs.cast_on_entry(capture)
    layers.use_norms(graph)
    layers.use_normalize(graph)
    layers.use_flat_resize(graph)
    layers.join_rms_norm(graph)
    layers.join_group_norm_silu(graph)
    layers.join_adaptive_layer_norm(graph)
    layers.use_attention(graph)
    layers.use_embedding(graph)
    products.use_products(graph)
    batch_norm.fold_batch_norm(graph, static_nodes(capture))
    merge.merge_linears(graph, static_nodes(capture))
    products.join_before(graph)
    layers.use_resize(graph)
    products.join_gated(graph)
    products.join_after(graph)
    pointwise.join_pointwise(graph, static_nodes(capture))
    inputs.cast_on_entry(capture)  # numbers that were widened for programs
    hoist.hoist(capture)
    graph.lint()
    capture.settle()
