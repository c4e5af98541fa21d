"""Every key of the config with its meaning: what `dlrun help configuration` shows.

`python -m dlrun.config.reference` prints the page docs/configuration.md; defaults and options come from the schema and
from configs/, so a test can hold the page against them.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dlrun.config import listing, schema
from dlrun.config.schema import CONFIG_DIR, Config
from dlrun.core.terminal import write_out

MEANINGS = {
    "seed": "seed of weights, order and dropout; the data have `data.seed`",
    "resume": "a run folder: the same as `dlrun resume RUN`; `auto`: this very run, if it was cut off or failed",
    "init_from": "a run, checkpoint, or file of weights (`torch.save`, `.safetensors`) to start from",
    "init_map": "other prefixes for the names in `init_from`, `{backbone: net}`; null leaves out what has the prefix",
    "trust": "open a pickled full model; of this command alone, no run stores it",
    "trusted_modules": "modules of your own that a loaded run may use; of this command alone, no run stores it",
    "preflight": "check shapes, memory and disk before the first step",
    "probes": "inputs for which the model is asked before and after training",
    "expect": "results that a run should reach, such as `test/accuracy >= 0.9`",
    "strict": "exit with code 1 when an expectation is missed",
    "sweep.points": "several runs from one request, a line of overrides each",
    "sweep.dir": "the sweep's folder, a new one or one to resume; null: always a new one",
    "sweep.jobs": "runs at a time, each in its own process; `auto`: one a GPU, or a core once a run took 5 s",
    "sweep.stack": "train points that differ in seed, rate, ... as one net: `auto` where it is faster, `on`, `off`",
    "sweep.engine": "where the jobs run: on this machine, on a Ray cluster, or as jobs of Slurm",
    "sweep.ray.address": "address of a cluster that runs, `auto` or host:port; null: start one here, for this sweep",
    "sweep.ray.cpus": "CPUs of a job, and its threads",
    "sweep.ray.gpus": "GPUs of a job, also 0.5; null: one where the cluster has any",
    "sweep.slurm.cluster": "`local`: processes on this machine, as a rehearsal",
    "sweep.slurm.partition": "partition of the jobs",
    "sweep.slurm.time": "minutes of a job, after which it is saved and queued again",
    "sweep.slurm.signal_seconds": "how many seconds before its time is over a job is told to save",
    "sweep.slurm.gpus": "GPUs of a job",
    "sweep.slurm.cpus": "CPUs of a job, and its threads",
    "sweep.slurm.memory_gb": "memory of a job in GB",
    "sweep.slurm.account": "account that is charged",
    "sweep.slurm.qos": "quality of service",
    "sweep.slurm.constraint": "features of the nodes",
    "sweep.slurm.setup": "lines of shell before a job, `[module load cuda]`",
    "sweep.slurm.options": "further options of sbatch, `{mail-type: FAIL}`",
    "sweep.fail_fast": "end the sweep at the first failure",
    "sweep.dry_run": "print the plan and stop",
    "sweep.max_jobs": "more points than this are taken for a mistake",
    "sweep.search": "search instead of all combinations: `tpe`, `random`, `grid`, `cmaes`, `qmc`, of Optuna",
    "sweep.trials": "points that a search tries; null: 20, and all of a grid",
    "sweep.seeds": "runs of each trial of a search, with the seeds from `seed` on; their mean counts",
    "sweep.objectives": "what a search improves, `[min val/loss, min parameters]`; null: the monitored metric",
    "sweep.pruner": "end bad trials of a search between two epochs: `median`, `hyperband`, `halving`, or `none`",
    "sweep.round": "trials that a search proposes at once; null: as many as run at a time",
    "data.batch_size": "rows per training batch",
    "data.eval_batch_size": "rows per batch of validation and test; null: the larger of 256 and the batch size",
    "data.val_fraction": "share of the training split to hold out where the data have no validation part",
    "data.shuffle": "a new order every epoch, from seed and epoch alone",
    "data.sampler": "`balanced`: draw as many rows an epoch with replacement, each class as often as every other",
    "data.drop_last": "leave out a smaller last batch",
    "data.loader": "`memory`, `workers`, or `auto`: in memory if the data fit",
    "data.num_workers": "processes that read; null: all cores but one, 1 to 4",
    "data.memory_share": "share of the device's free memory that data may take with `data.loader=auto`",
    "data.train_rows": "train on this many rows only, spread over the training split",
    "data.limit_batches": "use only this many batches of each split",
    "model.init": "start values by parameter name, `{w: 1.0}`",
    "model.freeze": "patterns on names of parameters or modules that keep their weights, `[features.*]`; or `backbone`",
    "task.kind": "null: as the data ask; `multilabel`: several labels a row; `autoencoder`: the input; `task=` sets it",
    "task.loss": (
        "the loss; null: mse, bce_with_logits or cross_entropy, as the targets ask; or another name, a class of "
        "torch.nn, `module.function` or `module.Class`"
    ),
    "task.losses": "of a net of several outputs, the loss of each by name, `{digit: cross_entropy, angle: huber}`",
    "task.weights": "of a net of several outputs, the weight of each loss in the sum, `{angle: 0.1}`; 1 by default",
    "task.loss_args": "arguments of the loss, `{label_smoothing: 0.1}`",
    "task.class_weights": (
        "`balanced`, or a weight for each class: the loss is then the weighted mean; of several outputs `{output: ...}`"
    ),
    "task.metrics": (
        "what is measured beside the loss, `[accuracy, balanced_accuracy, mine.metric]`; null: the task's own metrics; "
        "of several outputs `{output: [...]}`"
    ),
    "task.reduction": "how losses of a batch are reduced: `mean` or `sum`",
    "optimizer.groups": "settings for parameters by name, `[{match: <pattern>, lr: ...}]`; the first match wins",
    "scheduler.interval": "move the schedule every `epoch` or every `step`",
    "scheduler.warmup_steps": "steps of linear warm-up; the schedule begins after them and is that much shorter",
    "trainer.max_steps": "optimizer steps to make; typed without `trainer.epochs`, they alone end the training",
    "trainer.accumulate_steps": "batches per optimizer step",
    "trainer.progress": "a bar within the epoch and a line after it, the line alone, or nothing; run.log has the lines",
    "trainer.log_every_steps": "steps between logged values of training loss, gradient norm and learning rate",
    "trainer.profile": "a trace of a few steps in profile/, and a table of where the time went",
    "trainer.ema_decay": "also average the weights, decay a step: `val/ema_*`, `test/ema_*`, `ema` in checkpoints",
    "trainer.early_stopping.patience": "stop after this many epochs without improvement; null: never",
    "trainer.early_stopping.min_delta": "how much better counts as an improvement",
    "checkpoint.format": "`full` writes model.pt too",
    "checkpoint.monitor": "decides which epoch is best; null: val/loss, or train/loss without a validation part",
    "checkpoint.mode": "whether smaller (`min`) or larger (`max`) is better; null: as the metric asks",
    "checkpoint.every_steps": "also save in the middle of an epoch, after this many steps",
    "checkpoint.every_seconds": "save when this many seconds have passed since the last save, not by `every_epochs`",
    "checkpoint.keep": "newest checkpoints to keep, besides the best",
    "device.name": "`auto`, `cpu`, `cuda` or `mps`; `device=cuda` sets it",
    "device.index": "which CUDA device",
    "device.precision": "`fp32`, `bf16`, `fp16` or `fp64`",
    "device.compile": "compile the model with torch.compile, before the clock of the training starts",
    "device.tf32": "round fp32 products on CUDA to 10 bits; null: as torch does, in convolutions only",
    "device.channels_last": "keep images in channels-last layout; null: for nets with 2-d convolutions",
    "device.deterministic": "use deterministic algorithms only",
    "device.cuda_graph": "`auto`: run a whole step on a GPU as one CUDA graph, where its shapes allow it; `off`",
    "device.strategy": "of several processes, `ddp`: each holds the whole net; `fsdp2`: each holds a share of it",
    "device.timeout_seconds": "how long one of several processes may keep the others waiting",
    "device.num_threads": "CPU threads; `auto`: the fastest of a few timed steps, taken again on resume",
    "tracking.graph": "log the graph of the model to TensorBoard; null: for the runs that `figures=null` draws",
    "tracking.simple_models": "fit scikit-learn's models to a table, and note a better one; null: for runs alone",
    "tracking.samples": "log a grid of input images",
    "tracking.activations": "draw the activation functions of the model, which are the same in every run",
    "tracking.weight_histograms": "log the distribution of every parameter, every epoch",
    "tracking.evolution_every_epochs": "draw the fit every so many epochs, and all of these pictures as a GIF",
    "tracking.diagnose": "report learning trouble at the epoch where it shows",
    "logger": "loggers by name, each a `_target_` with its arguments: see `dlrun help loggers`",
    "figures": "draw pictures into figures/ and TensorBoard; null: for a run alone, and for a sweep's best run",
    "callbacks": "callbacks of your own, `+callbacks.mine._target_=mine.Mine`; other spellings for dlrun's",
    "user": "values of your own, for other keys to refer to: `${user.width}`",
    "run.name": "a name for the run, which takes the place of model and data in the name of its folder",
    "run.tags": "words to find the run by, `run.tags=[baseline,long]`: `dlrun ls runs tag=baseline`",
    "run.notes": "a text on the run, for its report and `dlrun show`",
    "paths.data": "where data sets are looked for and downloaded to, or `$DLRUN_DATA_DIR`",
    "trainer.epochs": "passes over the training data",
    "trainer.grad_clip_norm": "clip gradients to this norm, summed over all parameters",
    "checkpoint.every_epochs": "epochs between checkpoints; the last is always saved, very short ones are not all",
    "paths.outputs": "where runs are written",
}

_INTRODUCTION = """\
# Configuration

A run is composed of one option per group, and of keys. `dlrun ls GROUP` prints the options of a group with a line about
each, `dlrun --cfg job` the composed config; `GROUP=OPTION` and `key=value` words change it.

`digits`, files of your own (`table`, `text`, `series`, `arrays`, `image_folder`, `webdataset`, `huggingface`) and the
sets that a formula makes need no network. Other data sets are looked for in `paths.data` and downloaded there when
missing (the course's tables and names with a checksum). Keys below `data`, `model`, `optimizer` and `scheduler` that
are not in this table belong to the chosen option; `dlrun --cfg job` shows them.
"""


def list_keys() -> list[tuple[str, Any]]:
    """Each key of the schema with its default, in the order of the schema."""
    return list(_list_fields(Config, ""))


def _list_fields(config: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(config):
        key = prefix + field.name
        # data, model, optimizer and scheduler are open dictionaries; KEYS has what every option of theirs takes.
        block: Any = schema.KEYS.get(key, field.default_factory)
        if dataclasses.is_dataclass(block):
            yield from _list_fields(block, f"{key}.")
        elif field.default_factory is dataclasses.MISSING:
            yield key, field.default
        else:
            yield key, field.default_factory()


def _format_default(key: str, default: Any) -> str:
    if key == "paths.data":
        return schema.DATA_FOLDER
    if default is None or isinstance(default, bool):
        return {None: "null", True: "true", False: "false"}[default]
    return f"{default:g}" if isinstance(default, float) else str(default)


def render_page(config_dir: Path = CONFIG_DIR) -> str:
    """Render the page about groups, options and keys as Markdown."""
    groups = ["| group | options |", "| --- | --- |"]
    for group in listing.list_groups(config_dir):
        options = [f"`{name}`" for name, _ in listing.list_options(group, config_dir)]
        groups.append(f"| `{group}` | {' '.join(options)} |")

    keys = ["| key | default | meaning |", "| --- | --- | --- |"]
    for key, default in list_keys():
        keys.append(f"| `{key}` | {_format_default(key, default)} | {MEANINGS[key]} |")

    return "\n".join([_INTRODUCTION, "## Groups", "", *groups, "", "## Keys", "", *keys, ""])


if __name__ == "__main__":
    write_out(render_page().removesuffix("\n"))
