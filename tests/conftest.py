"""One thread for each process of tests: with two processes on two cores, more only spin against each other."""

import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest


@pytest.fixture
def own_registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers, the plugins that it loads, and where these looked for modules are forgotten after it."""
    from basedbench import plugins
    from basedbench.contenders import registry as contenders
    from basedbench.mixers import mixer_names
    from basedbench.mixers import registry as mixers

    mixer_names()
    monkeypatch.setattr(mixers, "_mixers", mixers.registered())
    monkeypatch.setattr(contenders, "_REGISTERED", contenders.registered())
    monkeypatch.setattr(plugins, "_loaded", {})
    monkeypatch.setattr(sys, "path", list(sys.path))
