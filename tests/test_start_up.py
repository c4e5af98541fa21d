"""What a run has not imported when it makes its first step, as it does not need it then."""

import subprocess
import sys
from pathlib import Path

SPY = """
import sys, torch

class Spy(torch.optim.SGD):
    def step(self, closure=None):
        if not getattr(Spy, "told", False):
            Spy.told = True
            print("modules", *sorted(sys.modules))
        return super().step(closure)
"""


def test_the_first_step_comes_before_what_is_needed_later(tmp_path: Path) -> None:
    (tmp_path / "spy.py").write_text(SPY)
    words = ["data=regression", "model=linear", "optimizer=sgd", "optimizer._target_=spy.Spy", "trainer.epochs=1"]
    start = [sys.executable, "-m", "dlrun", *words, "tracking.graph=false", "figures=false"]
    done = subprocess.run(start, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("modules "))
    there = set(line.split()[1:])
    assert {"torch", "dlrun.loop", "sklearn.datasets"} <= there
    later = {"matplotlib", "PIL", "torchvision", "pandas", "pooch", "sklearn.metrics", "dlrun.step_graph"}
    later |= {"dlrun.following", "dlrun.sweep.execution", "torch.utils.tensorboard._pytorch_graph", "lightning"}
    assert there & later == set()
