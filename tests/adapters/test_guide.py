"""The blocks of the guides run as they stand, and there is one for every adapter."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from flowmc_adapters import ADAPTERS

DOCS = Path(__file__).parents[2] / "docs"
GUIDE = DOCS / "bring_your_flow.md"
BLOCKS = re.findall(r"### ([^\n]+)\n(?:(?!\n##).)*?```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize(("title", "code"), BLOCKS, ids=[title for title, _ in BLOCKS])
def test_block_runs(title: str, code: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        exec(compile(code, f"<{title}>", "exec"), {"__name__": "guide"})


def test_every_adapter_has_a_block() -> None:
    assert len(BLOCKS) == len(ADAPTERS)


def test_other_samplers_run(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "other_samplers.md").read_text(encoding="utf-8"), re.DOTALL)
    module: dict[str, object] = {"__name__": "guide"}
    for block in blocks:
        exec(compile(block, "<other samplers>", "exec"), module)
    assert len(blocks) == 6
    assert "nan" not in capsys.readouterr().out
