"""Compilation of the CPU kernels: the cache folder, and what happens without a compiler."""

import errno
import os
import re
import tempfile

import pytest
import torch

from study.norms import SwitchNorm2d
from study.norms.kernels import build, dispatch


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """The folder of an empty cache, not created yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "normalizer-study"


def test_without_a_compiler_the_reference_runs_with_one_warning(monkeypatch, cache, recwarn):
    monkeypatch.setattr(dispatch, "_loaded", {})
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    layer, x = SwitchNorm2d(3), torch.randn(2, 3, 4, 4)
    layer(x)
    layer(x).sum().backward()
    (warning,) = recwarn
    assert re.search(r"reference implementation .*: there is no C\+\+ compiler", str(warning.message))
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


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_cache_that_cannot_be_written_is_a_build_error(monkeypatch, cache, number):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "TemporaryDirectory", refuse)
    with pytest.raises(build.BuildError, match=f"{cache}: {os.strerror(number)}"):
        build.build_library()
    assert not list(cache.rglob("*.so"))


def test_a_cache_that_cannot_be_created_is_a_build_error(cache):
    cache.write_text("")
    with pytest.raises(build.BuildError, match="XDG_CACHE_HOME"):
        build.build_library()


@pytest.mark.parametrize("mode", [0o777, 0o757])
def test_a_cache_whose_parent_others_can_write_to_is_not_used(cache, mode):
    cache.mkdir(mode=0o700)
    cache.parent.chmod(mode)
    with pytest.raises(build.BuildError, match=f"other users can replace it, because they can write to {cache.parent}"):
        build.build_library()


def test_a_cache_behind_a_link_is_checked_where_it_is(monkeypatch, tmp_path):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "link").symlink_to(tmp_path / "open")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "link"))
    with pytest.raises(build.BuildError, match="other users can replace it"):
        build.build_library()


@pytest.mark.parametrize(
    ("owner", "mode", "is_open"),
    [
        ("own", 0o755, False), ("own", 0o775, False), ("own", 0o777, True), ("own", 0o1777, False),
        ("root", 0o755, False), ("root", 0o775, True), ("root", 0o777, True), ("root", 0o1777, False),
        ("other", 0o755, True), ("other", 0o1777, True), ("unmapped", 0o755, False), ("unmapped", 0o777, True),
    ],
)  # fmt: skip
def test_which_parents_are_open_to_others(monkeypatch, owner, mode, is_open):
    monkeypatch.setattr(build.os, "getuid", lambda: 1000)
    user = {"own": 1000, "root": 0, "other": 1001, "unmapped": 65534}[owner]
    assert build._is_open_to_others(os.stat_result([mode, 0, 0, 0, user, *[0] * 5])) is is_open
