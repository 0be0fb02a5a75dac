"""Networks built from a norm factory, their initialization, and where each norm layer sits in them."""

from study.models.geometry import LayerGeometry, trace_geometry
from study.models.initialization import initialize
from study.models.networks import backbone_of, build_network
from study.models.norm_counts import count_norms

__all__ = ["LayerGeometry", "backbone_of", "build_network", "count_norms", "initialize", "trace_geometry"]
