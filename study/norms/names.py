"""Norm names, without torch: what a configuration may write and what it means.

A name is a kind, followed for switch norms by an optional control and an optional pool: `bn`, `sn`, `sn-uniform`,
`ssn[in,ln]`, `sn-shared[in,bn,gn]`. `_SPECS` lists every allowed spelling.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import combinations

NORMALIZERS = ("in", "ln", "bn", "gn")
"""The normalizers that a pool may contain, in the order of switch weights."""

POOLS = tuple(pool for size in range(1, len(NORMALIZERS) + 1) for pool in combinations(NORMALIZERS, size))
"""All pools: the non-empty subsets of `NORMALIZERS`, in its order."""

DEFAULT_POOL = ("in", "ln", "bn")

NORM_NAMES = (
    *("bn", "gn", "in", "ln", "sn", "ssn"),
    *("sn-uniform", "sn-random", "sn-shared", "sn-stage", "sn-tied"),
)
"""The norms that a model can be built with; after those that start with `sn` or `ssn` a pool in brackets may follow."""


@dataclass(frozen=True, kw_only=True)
class NormSpec:
    """The meaning of a norm name.

    kind: `bn`, `gn`, `in`, `ln`, `sn` or `ssn`.
    control: how the weights of an `sn` are restricted (`uniform`, `random`, `shared`, `stage`, `tied`), or None.
    pool: the normalizers to choose from; a single norm is a pool of one.
    """

    kind: str
    control: str | None
    pool: tuple[str, ...]

    @property
    def is_switch(self) -> bool:
        return self.kind in ("sn", "ssn")


def parse_norm(name: str) -> NormSpec:
    """Parses a norm name. ValueError (one line, with the nearest valid name) if it is unknown."""
    if name not in _SPECS:
        nearest = get_close_matches(_clean_spelling(name), _SPECS, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"norm {name!r} is unknown: allowed are {', '.join(NORM_NAMES)}, and after sn* or ssn a pool "
            f"[...] of {', '.join(NORMALIZERS)} in this order; nearest is {nearest!r}"
        )
    return _SPECS[name]


def effective_pool(norm: NormSpec | str, statistics_batch: int | None) -> tuple[str, ...]:
    """Returns the pool of `norm` if batch statistics are taken over `statistics_batch` samples (None: unknown).

    Over one sample BN equals IN in training, so bn is removed from the pool of a switch norm, as in the authors' (8, 1)
    models. The single norm `bn` and an unknown statistics batch leave the pool unchanged.

    ValueError if the name is unknown, `statistics_batch` is below 1, or the pool becomes empty.
    """
    spec = parse_norm(norm) if isinstance(norm, str) else norm
    if statistics_batch is not None and statistics_batch < 1:
        raise ValueError(f"statistics_batch {statistics_batch} is not allowed: at least 1 sample")
    if statistics_batch != 1 or not spec.is_switch:
        return spec.pool
    pool = tuple(member for member in spec.pool if member != "bn")
    if not pool:
        raise ValueError(f"norm {norm!r} has only bn in its pool, which is not allowed at statistics_batch 1")
    return pool


def _clean_spelling(name: str) -> str:
    base, _, members = name.lower().replace(" ", "").partition("[")
    pool = [member for member in NORMALIZERS if member in members.rstrip("]").split(",")]
    return f"{base}[{','.join(pool)}]" if pool else base


def _list_specs() -> Iterator[tuple[str, NormSpec]]:
    for name in NORM_NAMES:
        kind, _, control = name.partition("-")
        if kind in NORMALIZERS:
            yield name, NormSpec(kind=kind, control=None, pool=(kind,))
            continue
        for pool in POOLS:
            yield f"{name}[{','.join(pool)}]", NormSpec(kind=kind, control=control or None, pool=pool)
        yield name, NormSpec(kind=kind, control=control or None, pool=DEFAULT_POOL)


_SPECS = dict(_list_specs())
