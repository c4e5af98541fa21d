"""`dlrun ls` and `dlrun --help`: what can be chosen, without importing torch."""

from pathlib import Path

from dlrun.errors import RequestError, did_you_mean

HELP = """\
dlrun: train a choice of data × model × optimizer × device, and record it

  dlrun                                      an mlp on scikit-learn's digits
  dlrun model=resnet data=mnist device=cuda  choose from the groups
  dlrun optimizer.lr=0.1 trainer.epochs=5    change any key
  dlrun -m optimizer=sgd,momentum,adam       a run for each choice
  dlrun -m 'seed=range(5)' sweep.jobs=2      brackets are quoted for the shell
  dlrun lesson=gradient_descent              a lesson of the course
  dlrun debug=one_batch                      one batch through everything

  dlrun resume RUN [key=value ...]           go on, or longer: trainer.epochs=40
  dlrun resume SWEEP [key=values ...]        go on, or add points: seed=5,6
  dlrun eval RUN_OR_CHECKPOINT               metrics, classes, calibration
  dlrun predict RUN_OR_CHECKPOINT INPUT ...  images, folders, names, CSV rows
  dlrun export RUN_OR_CHECKPOINT             ONNX, or format=safetensors, python
  dlrun compare DIR ...                      table and pictures of finished runs
  dlrun diff RUN RUN                         what differs, and where they part
  dlrun check [key=value ...]                all that is wrong, without training
  dlrun check resume [key=value ...]         kill it, resume it, compare
  dlrun check lr [key=value ...]             a learning rate to begin with
  dlrun check gradients model=scratch_mlp    hand-written gradients
  dlrun ls [GROUP]                           what can be chosen
  dlrun ls runs [status=failed ...]          what was run, newest first
  dlrun clean [--yes]                        remove failed and empty runs
  tensorboard --logdir outputs               look at the runs
  eval "$(dlrun completion bash)"            the Tab key, or zsh, from now on

  --cfg job          show the composed config
  --config-dir DIR   add options of your own, in DIR/<group>/<option>.yaml
  -v                 show tracebacks
  --hydra-help       Hydra's other flags

groups: {groups}
"""


def groups(config_dir: Path) -> list[str]:
    """The groups that config.yaml's defaults list names, in its order."""
    from dlrun.request import GROUPS

    return [group for group in GROUPS if (config_dir / group).is_dir()]


def options(config_dir: Path, group: str) -> list[tuple[str, str]]:
    """Each option of a group, with the words its file opens with."""
    folder = config_dir / group
    if not folder.is_dir():
        known = groups(config_dir)
        hint = did_you_mean(group, known, "dlrun ls ")
        raise RequestError(f"there is no group {group}; {hint}type one of {', '.join(known)}")
    return [(path.stem, _first_words(path)) for path in sorted(folder.glob("*.yaml"))]


def _first_words(path: Path) -> str:
    comments = (line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#"))
    return next((line for line in comments if not line.startswith("@package")), "")
