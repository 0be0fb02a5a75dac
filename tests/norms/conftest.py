"""Fixtures of the norm layers' tests."""

from contextlib import nullcontext

import pytest

from study.norms.kernels import dispatch


@pytest.fixture(params=["fused", "plain"])
def kernel_kind(request):
    """Runs a test twice: with the compiled kernels and with the reference implementation."""
    if request.param == "fused":
        assert dispatch.load_kernels("cpu"), "the kernels were not compiled, so both runs would use the reference"
    with dispatch.plain_norms() if request.param == "plain" else nullcontext():
        yield request.param
