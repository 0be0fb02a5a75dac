"""Compilation of the CPU kernels: the cache folder, and what happens without a compiler."""

import warnings

import pytest
import torch

from study.norms import SwitchNorm2d
from study.norms.kernels import build, dispatch


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """The folder of an empty cache, not created yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "normalizer-study"


def test_without_a_compiler_the_reference_runs_with_one_warning(monkeypatch, cache):
    monkeypatch.setattr(dispatch, "_loaded", {})
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    layer, x = SwitchNorm2d(3), torch.randn(2, 3, 4, 4)
    with pytest.warns(UserWarning, match=r"reference implementation .*: there is no C\+\+ compiler"):
        layer(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(x).sum().backward()
    assert dispatch.kernel_kind("cpu") == "plain"


def test_the_error_of_a_failing_compiler_has_its_name(monkeypatch, cache):
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(build.BuildError, match="false"):
        build.build_library()
    assert not list(cache.rglob("*.so"))


def test_the_cache_is_private_and_used_again(monkeypatch, cache):
    monkeypatch.setattr(build, "_compile", lambda compiler, flags, path: path.write_bytes(b""))
    path = build.build_library()
    assert path.parent == cache
    assert cache.stat().st_mode & 0o077 == 0
    monkeypatch.setattr(build, "_compile", lambda *_: pytest.fail("compiled again"))
    assert build.build_library() == path


def test_a_cache_that_others_can_write_to_is_not_used(cache):
    cache.mkdir()
    cache.chmod(0o777)
    with pytest.raises(build.BuildError, match="others can write to it"):
        build.build_library()


def test_a_cache_that_cannot_be_created_is_a_build_error(cache):
    cache.write_text("")
    with pytest.raises(build.BuildError, match="XDG_CACHE_HOME"):
        build.build_library()
