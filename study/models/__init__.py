"""Networks built from a norm factory, their initialization, and the position of each norm layer in them."""

from study.models.geometry import LayerGeometry, trace_geometry
from study.models.initialization import initialize_network
from study.models.networks import build_network, get_backbone
from study.models.norm_counts import count_norms

__all__ = ["LayerGeometry", "build_network", "count_norms", "get_backbone", "initialize_network", "trace_geometry"]
