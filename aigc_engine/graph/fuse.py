"""The passes in their order."""

from __future__ import annotations

from aigc_engine.graph.capture import Capture
from aigc_engine.graph.constants import static_nodes
from aigc_engine.graph.passes import batch_norm, clean, layers, merge, products


def fuse(capture: Capture) -> None:
    """Rewrites a captured graph into our ops, in place; what has no op stays aten's."""
    graph = capture.graph
    clean.remove_dead(graph)
    clean.undo_transposes(graph)
    clean.merge_equal(graph)
    layers.use_norms(graph)
    layers.join_group_norm_silu(graph)
    layers.join_adaptive_layer_norm(graph)
    layers.use_attention(graph)
    products.use_products(graph)
    batch_norm.fold_batch_norm(graph, static_nodes(capture))
    merge.merge_linears(graph, static_nodes(capture))
    products.join_before(graph)
    products.join_after(graph)
    graph.lint()
