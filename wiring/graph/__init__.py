"""Neural graphs: their shape as plain data, how they run, what they cost.

The names here describe a graph and need no torch; `neural` is what every running graph has,
`static` and `dynamic` run it, `edges` and `rules` hold the two plug-in protocols, `measure` counts,
`convert` reads and writes graph files.
"""

from wiring.graph.topology import Bundle, NodeGroup, Scope, Skip, Topology

__all__ = ["Bundle", "NodeGroup", "Scope", "Skip", "Topology"]
