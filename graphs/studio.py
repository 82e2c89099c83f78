"""Graph factories for `langgraph dev` (langgraph.json): they show the graphs. The server brings its own
checkpointer.

Runs need a context with a teacher or a store, which JSON cannot carry; they are started by the composition
root.
"""

from __future__ import annotations

from graphs.catalog.graph import CatalogGraph, build_catalog
from graphs.curate.graph import CurateGraph, build_curate
from graphs.monitor.graph import MonitorGraph, build_monitor
from graphs.teach.graph import TeachGraph, build_teach


def catalog() -> CatalogGraph:
    """The catalog graph, compiled without a checkpointer."""
    return build_catalog()


def monitor() -> MonitorGraph:
    """The monitor graph."""
    return build_monitor()


def curate() -> CurateGraph:
    """The curate graph, compiled without a checkpointer."""
    return build_curate()


def teach() -> TeachGraph:
    """The teach graph."""
    return build_teach()
