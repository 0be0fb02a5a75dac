"""Norm names and the exports of the package."""

import subprocess
import sys

import pytest

import study.norms
from study.norms.names import NORM_NAMES, POOLS, NormSpec, effective_pool, parse_norm


def test_names_can_be_parsed_without_torch():
    code = "import sys; from study.norms import parse_norm; parse_norm('sn'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_export_can_be_imported():
    assert all(getattr(study.norms, name) is not None for name in study.norms.__all__)


def test_unknown_export_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_norm"):
        _ = study.norms.no_such_norm


@pytest.mark.parametrize(
    ("name", "kind", "control", "pool"),
    [
        ("bn", "bn", None, ("bn",)),
        ("sn", "sn", None, ("in", "ln", "bn")),
        ("ssn[in,ln]", "ssn", None, ("in", "ln")),
        ("sn-uniform[in,bn,gn]", "sn", "uniform", ("in", "bn", "gn")),
        ("sn-stage", "sn", "stage", ("in", "ln", "bn")),
    ],
)
def test_parse(name, kind, control, pool):
    assert parse_norm(name) == NormSpec(kind=kind, control=control, pool=pool)


def test_every_switch_norm_may_have_every_pool():
    for name in NORM_NAMES:
        if name.startswith(("sn", "ssn")):
            for pool in POOLS:
                assert parse_norm(f"{name}[{','.join(pool)}]").pool == pool


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("sm", "sn"),
        ("SN", "sn"),
        ("sn_shared", "sn-shared"),
        ("sn[ln,in]", "sn[in,ln]"),
        ("sn[in, ln]", "sn[in,ln]"),
        ("sn[in,in]", "sn[in]"),
        ("sn[]", "sn"),
        ("bn[in]", "sn[in]"),
        ("ssn-uniform", "sn-uniform"),
    ],
)
def test_the_error_has_the_nearest_name(wrong, nearest):
    with pytest.raises(ValueError, match="is unknown: allowed are bn, gn") as error:
        parse_norm(wrong)
    assert str(error.value).endswith(f"nearest is {nearest!r}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "batch", "pool"),
    [
        ("sn", 1, ("in", "ln")),
        ("ssn", 1, ("in", "ln")),
        ("sn-shared[bn,gn]", 1, ("gn",)),
        ("sn", 2, ("in", "ln", "bn")),
        ("sn", None, ("in", "ln", "bn")),
        ("bn", 1, ("bn",)),
        ("gn", 1, ("gn",)),
    ],
)
def test_effective_pool(name, batch, pool):
    assert effective_pool(name, batch) == effective_pool(parse_norm(name), batch) == pool


def test_effective_pool_must_not_be_empty():
    with pytest.raises(ValueError, match="only bn in its pool"):
        effective_pool("sn[bn]", 1)


def test_statistics_batch_is_positive():
    with pytest.raises(ValueError, match="statistics_batch 0"):
        effective_pool("sn", 0)
