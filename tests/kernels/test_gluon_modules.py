"""Where Triton has no Gluon, or another one, something else computes the operator and says so once."""

import sys
import warnings
from types import ModuleType, SimpleNamespace

import pytest

from basedbench.kernels import gluon_modules


@pytest.fixture(autouse=True)
def forgotten():
    for function in (gluon_modules.gluon_module, gluon_modules.usable):
        function.cache_clear()
    yield
    for function in (gluon_modules.gluon_module, gluon_modules.usable):
        function.cache_clear()


def test_an_old_triton_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__="3.5.1"))
    assert "Triton 3.5.1 is older than 3.6" in gluon_modules.gluon_module("wkv4_triton")


def test_without_triton_there_is_a_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    assert "no Gluon" in gluon_modules.gluon_module("wkv4_triton")


def test_another_gluon_is_a_reason_that_is_told_once(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__="3.9.0"))
    monkeypatch.setitem(sys.modules, "basedbench.kernels.selective_scan_triton", None)
    with pytest.warns(UserWarning, match="selective_scan runs as its PyTorch reference"):
        assert not gluon_modules.usable("selective_scan_triton", "selective_scan")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not gluon_modules.usable("selective_scan_triton", "selective_scan")


def test_what_is_there_is_used(monkeypatch):
    module = ModuleType("basedbench.kernels.wkv4_triton")
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__="3.6.0"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert gluon_modules.gluon_module("wkv4_triton") is module
    assert gluon_modules.usable("wkv4_triton", "wkv4")
