"""The evaluation section: the mean loss and the metrics of a part."""

from dlrun.eject.plain.losses import outputs
from dlrun.eject.plain.refusal import cannot
from dlrun.eject.plain.source import Constant, Piece, filled
from dlrun.eject.plain.training_run import TrainingRun

_MEAN = '''\
def mean(losses, sizes):
    """The mean over all rows, of losses that are $kind over batches of these sizes."""
    return sum(float(loss) * size for loss, size in zip(losses, sizes, strict=True)) / sum(sizes)  #? plain & !sum
    return sum(map(float, losses)) / sum(sizes)  #? plain & sum
    losses = torch.stack(losses).double()  #? !plain & sum
    losses = torch.stack(losses).double() * torch.tensor(sizes)  #? !plain & !sum
    total = sum(part.sum() for part in losses.split($block))  # as the run added them up, to the bit  #? !plain
    return float(total / sum(sizes))  #? !plain
'''
_BATCHES = '''\
def batches(part, size, epoch=None):  #? shuffle
    """Batches of a part's rows; with an epoch in its own order, a function of SEED and the epoch."""  #? shuffle
    order = torch.arange(len(part[-1]))  #? shuffle
    if epoch is not None:  #? shuffle
        generator = torch.Generator().manual_seed((SEED * 0x9E3779B97F4A7C15 + epoch) % 2**63)  #? shuffle
        order = torch.randperm(len(order), generator=generator)$cut  #? shuffle
    for rows in order.split(size):  #? shuffle
def batches(part, size):  #? !shuffle
    """Batches of a part's rows in their order."""  #? !shuffle
    for rows in torch.arange(len(part[-1])).split(size):  #? !shuffle
        yield [column[rows] for column in part]  #? !last
        x, y = (column[rows] for column in part)  #? last
        yield x.permute(0, 3, 1, 2), y  # (B, C, H, W), with the channels last in memory  #? last
'''
_SHUFFLED = '''\
def shuffled(epoch):
    """The rows in the order of an epoch, a function of SEED and the epoch alone."""
    generator = torch.Generator().manual_seed((SEED * 0x9E3779B97F4A7C15 + epoch) % 2**63)
    return torch.randperm(len(y), generator=generator)$cut
'''
_EVALUATE = '''\
@torch.inference_mode()
def evaluate(part):
    """The mean loss and the metrics of all rows of a part."""
    net.eval()
    outputs, losses, sizes = [], [], []
    for $columns in batches(part, EVAL_BATCH_SIZE):
        $scored
        sizes.append($size)
    z, y = torch.cat(outputs), part[-1]
    $metrics
    return {
        "loss": mean(losses, sizes),
        $found
    }
'''
_SCORED = """\
outputs.append(net($inputs))  #? !autocast
losses.append(criterion($called))  #? !autocast
with torch.autocast("cpu", dtype=$autocast):  #? autocast
    outputs.append(net($inputs))  #? autocast
    losses.append(criterion($called))  #? autocast
"""
_ONCE = """\
net.eval()  #? modal
with torch.inference_mode()$autocast:
    z = net($inputs)
    print(f"loss {$loss:.6g}  $name {$metric:.6g}")
"""
_AT_ONCE = {  # of outputs z and targets y, the metric that tells most
    "regression": ("mae", "(z - y).abs().mean()"),
    "binary": ("accuracy", "((z > $threshold) == y).double().mean()"),
    "multiclass": ("accuracy", "(z.argmax(1) == y).double().mean()"),
    "tagging": ("accuracy", "(z.argmax(-1) == y).double().mean()"),
}
_METRICS = {  # lines before, and the entries of the dictionary, for outputs z and targets y
    "regression": (
        "off, spread = (z - y).double(), (y - y.mean(0)).double().square().sum(0)\n",
        """\
"mse": float(off.square().mean()),
"mae": float(off.abs().mean()),
"r2": float((1 - off.square().sum(0) / spread).mean()),
""",
    ),
    "binary": (
        """\
said, true = z > $threshold, y == 1
hits, both = int((said & true).sum()), int(said.sum() + true.sum())
""",
        """\
"accuracy": float((said == true).double().mean()),
"precision": hits / max(int(said.sum()), 1),
"recall": hits / max(int(true.sum()), 1),
"f1": 2 * hits / max(both, 1),
""",
    ),
    "multiclass": (
        """\
pairs = torch.bincount(y * $classes + z.argmax(1), minlength=$classes * $classes).view($classes, $classes)
hits, both = pairs.diagonal().double(), pairs.sum(0) + pairs.sum(1)
""",
        """\
"accuracy": float(hits.sum() / len(y)),
"macro_f1": float((2 * hits[both > 0] / both[both > 0]).mean()),
""",
    ),
    "tagging": (
        "right = z.argmax(-1) == y\n",
        """\
"accuracy": float(right.double().mean()),
"exact_match": float(right.all(-1).double().mean()),
""",
    ),
}
_KNOWN = {
    "regression": ("loss", "mse", "mae", "r2"),
    "binary": ("loss", "accuracy", "precision", "recall", "f1"),
    "multiclass": ("loss", "accuracy", "macro_f1"),
    "tagging": ("loss", "accuracy", "exact_match"),
}


def functions(run: TrainingRun) -> Piece:
    """Source that defines how rows are ordered and batched, and `evaluate` where parts are to be compared."""
    size = run.keys.batch_size
    constants = {
        "BATCH_SIZE": Constant(size),
        "EVAL_BATCH_SIZE": Constant(run.keys.eval_batch_size or max(size, 256)),
    }
    found = []
    rows = "len(y)" if run.simple else "len(order)"
    cut = f"[: {rows} // BATCH_SIZE * BATCH_SIZE]" if run.keys.drop_last else ""
    if not run.simple:
        flags = {"last": run.channels_last, "shuffle": run.keys.shuffle}
        found.append(filled(_BATCHES, flags, cut=cut))
    elif run.keys.shuffle and not run.whole:
        found.append(filled(_SHUFFLED, cut=cut))
    if not run.whole:
        added = run.saved.task.reduction == "sum"
        flags = {"sum": added, "plain": run.block == 1}
        found.append(filled(_MEAN, flags, kind="sums" if added else "means", block=run.block))
    if not run.simple:
        found.append(_evaluate(run))
    return Piece("\n".join(found), constants)


def _evaluate(run: TrainingRun) -> str:
    split, _, metric = run.monitor.partition("/")
    if metric not in (_KNOWN[run.spec.task] if split == "val" else ("loss",)):
        raise cannot(f"checkpoint.monitor={run.monitor}")
    called, autocast = outputs(run, "outputs[-1]"), run.autocast or ""
    before, entries = _metrics(run)
    return filled(
        _EVALUATE,
        columns=", ".join(run.columns),
        scored=filled(_SCORED, {"autocast": bool(autocast)}, inputs=run.inputs, called=called, autocast=autocast),
        size=size(run),
        metrics=before,
        found=entries,
    )


def size(run: TrainingRun) -> str:
    """What a batch weighs in a mean."""
    many = run.spec.task == "tagging" or (run.spec.task == "regression" and run.spec.output_size > 1)
    return "y.numel()" if many else "len(y)"


def _metrics(run: TrainingRun) -> tuple[str, str]:
    before, entries = _METRICS[run.spec.task]
    return filled(before, threshold=threshold(run), classes=run.spec.output_size), entries


def at_once(run: TrainingRun) -> str:
    """Source that prints loss and metric of the training rows, where there are no others."""
    name, metric = _AT_ONCE[run.spec.task]
    over = f" / {size(run)}" if run.saved.task.reduction == "sum" else ""
    return filled(
        _ONCE,
        {"modal": run.modal},
        autocast="" if run.autocast is None else f', torch.autocast("cpu", dtype={run.autocast})',
        inputs=run.inputs,
        loss=f"criterion({outputs(run, 'z')}){over}",
        name=name,
        metric=metric.replace("$threshold", threshold(run)),
    )


def threshold(run: TrainingRun) -> str:
    """Above which an output says yes."""
    return "0.5" if run.saved.task.loss_name in ("bce", "scratch_bce") else "0"
