"""A controlled study of how networks select their normalizers."""


def __getattr__(name: str) -> str:
    """`__version__`, read when it is asked for: the import of `study` must be instant, so that Ctrl-C is handled."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("normalizer-study")
    except PackageNotFoundError:  # a checkout that was never installed
        return "unknown"
