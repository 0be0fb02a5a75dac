"""A controlled study of how networks select their normalizers."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("normalizer-study")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "unknown"
