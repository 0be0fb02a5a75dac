"""Where the ranks of a trial that spans several nodes meet."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Rendezvous:
    """A node's view of the nodes that train a trial together.

    nodes: how many there are. node: index of this one. address, port: of the first node, where rank 0 listens.
    interface: the network interface of the collectives, `launch.interface`.
    """

    nodes: int
    node: int
    address: str
    port: int
    interface: str | None = None
