"""Networks built from a norm factory, their initialization, and where each norm layer sits in them."""

from study.models.census import count_norms
from study.models.geometry import LayerGeometry, trace_geometry
from study.models.initialization import initialize
from study.models.network import backbone_of, build_network

__all__ = ["LayerGeometry", "backbone_of", "build_network", "count_norms", "initialize", "trace_geometry"]
