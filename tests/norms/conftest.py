"""What is said of norm layers holds for the fused kernels and for the plain form alike."""

from contextlib import nullcontext

import pytest

from study.norms.kernels import dispatch


@pytest.fixture(params=["fused", "plain"])
def form(request):
    """Runs a test by the kernels and by the plain form: `pytestmark = pytest.mark.usefixtures("form")`."""
    if request.param == "fused":
        assert dispatch.available("cpu"), "the kernels did not compile: these tests would test the plain form twice"
    with dispatch.plain_norms() if request.param == "plain" else nullcontext():
        yield request.param
