"""Networks built from a norm factory, their initialization, and where each norm layer sits in them."""

from study.models.geometry import LayerGeometry, trace_geometry
from study.models.initialization import initialize
from study.models.network import build_network

__all__ = ["LayerGeometry", "build_network", "initialize", "trace_geometry"]
