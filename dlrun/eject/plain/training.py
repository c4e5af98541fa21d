"""The training section: the loop."""

from dlrun.eject.plain import grid, optimizers, scratch, start
from dlrun.eject.plain.evaluation import size
from dlrun.eject.plain.losses import outputs
from dlrun.eject.plain.refusal import cannot
from dlrun.eject.plain.source import Constant, Piece, filled
from dlrun.eject.plain.training_run import TrainingRun

_STEP = """\
if step < WARMUP_STEPS:  #? warmup
    for settings, lr in zip(optimizer.param_groups, full_lrs, strict=True):  #? warmup
        settings["lr"] = lr * (step + 1) / WARMUP_STEPS  #? warmup
$made
step += 1  #? counted
scheduler.step()  #? stepwise & !warmup
if step > WARMUP_STEPS:  #? stepwise & warmup
    scheduler.step()  #? stepwise & warmup
"""
_GRADIENT = """\
optimizer.zero_grad()  #? !manual
net.zero_grad()  #? manual
$passes
scaler.unscale_(optimizer)  #? scaler & clip
nn.utils.clip_grad_norm_(net.parameters(), GRAD_CLIP_NORM)  #? clip
optimizer.step()  #? !scaler & !manual
scaler.step(optimizer)  #? scaler
scaler.update()  #? scaler
with torch.no_grad():  #? manual
    for p in net.parameters():  #? manual
        p.add_(p.grad, alpha=-LR)  # p -= LR * p.grad, rounded once  #? manual
"""
_GROUP = """\
rows = sum($weight for *_, y in group)
for $columns in group:
    $one
"""
_PASS = """\
loss = criterion($called)  #? !autocast
with torch.autocast("cpu", dtype=$autocast):  #? autocast
    loss = criterion($called)  #? autocast
$backward
"""
_KEPT = """\
losses.append(loss.detach())
sizes.append($weight)
"""
_CLOSURE = '''\
def closure($columns):
    """The loss and its gradients, which LBFGS asks for several times a step."""
    optimizer.zero_grad()
    loss = criterion($called)  #? !autocast
    with torch.autocast("cpu", dtype=$autocast):  #? autocast
        loss = criterion($called)  #? autocast
    loss.backward()
    nn.utils.clip_grad_norm_(net.parameters(), GRAD_CLIP_NORM)  #? clip
    return loss
'''
_SLOPES = '''\
@torch.no_grad()
def slopes(p, $columns):
    """(f(p + ε) - f(p - ε)) / 2ε for each number of a parameter, which is as before afterwards."""
    before, found = p.clone(), []
    for i in range(p.numel()):
        shift = torch.zeros_like(p).flatten()
        shift[i] = EPSILON
        p.copy_(before + shift.view(p.shape))
        above = criterion($called)
        p.copy_(before - shift.view(p.shape))
        found.append((above - criterion($called)) / (2 * EPSILON))
    p.copy_(before)
    return torch.stack(found).view(p.shape)
'''
_NUMERIC = """\
with torch.no_grad():
    loss = criterion($called)
    measured = [slopes(p, $arguments) for p in net.parameters()]  # all before the first is moved
    for p, slope in zip(net.parameters(), measured, strict=True):
        p.add_(slope, alpha=-LR)
"""
_SETUP = """\
$net
$optimizer
$scheduler
full_lrs = [settings["lr"] for settings in optimizer.param_groups]  #? warmup
scaler = torch.amp.GradScaler("cpu")  # fp16 gradients would underflow  #? scaler
step = 0  #? counted
best = $worst  #? best
waited = 0  # epochs without improvement  #? stop
"""
_EPOCHS = """\
for epoch in range(1, EPOCHS + 1):
    net.train()  #? modes
    losses, sizes = [], []  #? !whole
    todo = batches(train, BATCH_SIZE$order)  #? grouped
    while group := list(islice(todo, ACCUMULATE_STEPS)):  # the batches of one step  #? grouped
        $step  #? grouped
    for rows in $order.split(BATCH_SIZE):  #? simple
        $step  #? simple
    for $columns in batches(train, BATCH_SIZE$order):  #? parts
        $step  #? parts
    $step  #? whole
    $end
"""
_END = """\
train_loss = mean(losses, sizes)  #? train_loss
found = evaluate(val)  #? val
if $value $better:  #? best
    best = $value  #? best
    waited = 0  #? stop
    best_weights = copy.deepcopy(net.state_dict())  #? keep
else:  #? stop
    waited += 1  #? stop
scheduler.step()  #? epochwise & !warmup
if step > WARMUP_STEPS:  #? epochwise & warmup
    scheduler.step()  #? epochwise & warmup
scheduler.step($value)  #? plateau & !warmup
if step > WARMUP_STEPS:  #? plateau & warmup
    scheduler.step($value)  #? plateau & warmup
if epoch % $often == 0:  #? seldom
    print($shown)  #? seldom
print($shown)  #? !seldom
if waited == PATIENCE:  #? stop
    break  #? stop
"""


def training(run: TrainingRun) -> Piece:
    """Source that makes net, optimizer and scheduler, and trains."""
    how = optimizers.kind(run)
    if how == "grid":
        return grid.training(run)
    keys, trainer = run.settings.scheduler.keys, run.settings.trainer
    if run.autocast and how == "numeric":
        raise cannot(f"device.precision with optimizer={run.settings.optimizer.choice}")
    if trainer.accumulate_steps > 1 and how in ("closure", "numeric"):
        raise cannot(f"trainer.accumulate_steps with optimizer={run.settings.optimizer.choice}")
    flags = _flags(run, how)
    optimizer, scheduler = optimizers.optimizer(run), optimizers.scheduler(run)
    helper = {"closure": _CLOSURE, "numeric": _SLOPES}.get(how, "")
    if helper:
        columns = "" if run.whole and how == "closure" else ", ".join(run.columns)
        helper = filled(
            helper, flags, columns=columns, called=outputs(run, f"net({run.inputs})"), autocast=run.autocast
        )
    setup = filled(
        _SETUP,
        flags,
        net=start.net(run),
        optimizer="" if how in ("manual", "numeric") else optimizer.code,
        scheduler=scheduler.code,
        worst="math.inf" if run.mode == "min" else "-math.inf",
    )
    code = f"{helper}\n{setup}\n{_loop(run, how, flags)}".lstrip("\n")
    epochs, _ = length(run)
    return Piece(
        code,
        {
            **optimizer.constants,
            **scheduler.constants,
            "EPOCHS": Constant(epochs),
            "MAX_STEPS": Constant(trainer.max_steps, "optimizer steps"),
            "ACCUMULATE_STEPS": Constant(trainer.accumulate_steps, "batches an optimizer step"),
            "GRAD_CLIP_NORM": Constant(trainer.grad_clip_norm),
            "WARMUP_STEPS": Constant(keys.warmup_steps, "in which the learning rate climbs in a straight line"),
            "PATIENCE": Constant(trainer.early_stopping.patience, "epochs without improvement"),
            "MIN_DELTA": Constant(trainer.early_stopping.min_delta, "less is no improvement"),
            "EPSILON": Constant(run.optimizer.defaults.get("epsilon")),
        },
    )


def length(run: TrainingRun) -> tuple[int, bool]:
    """How many epochs begin, and whether the last of them ends before its time."""
    trainer = run.settings.trainer
    steps = -(-run.batches // trainer.accumulate_steps)  # of an epoch
    epochs = trainer.limit_epochs(steps)
    if trainer.max_steps is None or trainer.max_steps >= epochs * steps:
        return epochs, False
    return -(-trainer.max_steps // steps), trainer.max_steps % steps != 0


def _flags(run: TrainingRun, how: str) -> dict[str, bool]:
    trainer, keys = run.settings.trainer, run.settings.scheduler.keys
    has_schedule = run.settings.scheduler.target is not None
    plateau = has_schedule and "plateau" in str(run.settings.scheduler.target).lower()
    epochs, limited = length(run)
    stop, keep = trainer.early_stopping.patience is not None, run.has_test
    return {
        "manual": how == "manual",
        "scaler": run.settings.device.precision == "fp16",
        "clip": trainer.grad_clip_norm is not None,
        "autocast": run.autocast is not None,
        "warmup": keys.warmup_steps > 0,
        "stepwise": has_schedule and keys.interval == "step",
        "epochwise": has_schedule and keys.interval == "epoch" and not plateau,
        "plateau": plateau,
        "limited": limited,
        "counted": keys.warmup_steps > 0 or limited,
        "whole": run.whole,
        "grouped": trainer.accumulate_steps > 1,
        "simple": run.simple and not run.whole,
        "parts": not run.simple and trainer.accumulate_steps == 1,
        "modes": run.modal or not run.simple,
        "val": run.has_val,
        "train_loss": not run.whole and (stop or keep or plateau) and not run.monitor.startswith("val/"),
        "stop": stop,
        "keep": keep,
        "best": stop or keep,
        "seldom": epochs > 60,
    }


def _loop(run: TrainingRun, how: str, flags: dict[str, bool]) -> str:
    epochs, _ = length(run)
    value = f'found["{run.monitor.partition("/")[2]}"]' if run.has_val else "train_loss"
    value = value if run.monitor.startswith("val/") else "train_loss"
    delta = run.settings.trainer.early_stopping.min_delta
    smaller, larger = ("< best - MIN_DELTA", "> best + MIN_DELTA") if delta and flags["stop"] else ("< best", "> best")
    end = filled(
        _END,
        flags,
        value=value,
        better=smaller if run.mode == "min" else larger,
        often=10 ** (len(str(epochs)) - 2),
        shown=_shown(run),
    )
    step = _step(run, how, flags)
    if flags["limited"]:
        step += "if step == MAX_STEPS:\n    break\n"
    if run.simple:
        cut = "[: len(y) // BATCH_SIZE * BATCH_SIZE]" if run.keys.drop_last else ""
        order = "shuffled(epoch)" if run.keys.shuffle else f"torch.arange(len(y)){cut}"
    else:
        order = ", epoch" if run.keys.shuffle else ""
    return filled(_EPOCHS, flags, order=order, columns=", ".join(run.columns), step=step, end=end)


def _step(run: TrainingRun, how: str, flags: dict[str, bool]) -> str:
    """One optimizer step, and the losses that it saw."""
    of = "[rows]" if flags["simple"] else ""
    inputs, arguments = (", ".join(f"{c}{of}" for c in columns) for columns in (run.columns[:-1], run.columns))
    called = outputs(run, f"net({inputs})")
    called = called.removesuffix("y") + f"y{of}" if called.endswith(", y") else called
    weight = size(run)
    weight = weight.replace("len(y)", "len(rows)").replace("y.", "y[rows].") if flags["simple"] else weight
    kept = "" if run.whole else filled(_KEPT, weight=weight)
    if how == "closure":
        asked = "closure" if run.whole else f"partial(closure, {arguments})"
        made = f"loss = optimizer.step({asked})\n{kept}"
    elif how == "numeric":
        made = filled(_NUMERIC, called=called, arguments=arguments) + kept
    else:
        shared = flags["grouped"] and run.saved.task.reduction == "mean"
        scaled = f"(loss * ({weight} / rows))" if shared else "loss"
        backward = f"scaler.scale({scaled}).backward()" if flags["scaler"] else f"{scaled}.backward()"
        one = scratch.passes(run, f"net({inputs})", arguments.rpartition(", ")[2])
        one = one or filled(_PASS, flags, called=called, autocast=run.autocast or "", backward=backward)
        if flags["grouped"]:
            one = filled(_GROUP, weight=weight, columns=", ".join(run.columns), one=one + kept)
            one, kept = one if shared else one.partition("\n")[2], ""
        made = filled(_GRADIENT, flags, passes=one) + kept
    return filled(_STEP, flags, made=made)


def _shown(run: TrainingRun) -> str:
    """The text that is printed of an epoch."""
    if run.whole:
        return 'f"epoch {epoch:4}  loss {loss.item():.6g}"'
    val = ', *(f"val {k} {v:.4f}" for k, v in found.items())' if run.has_val else ""
    uses_it = (run.watched or run.has_test) and not run.monitor.startswith("val/")
    loss = "train_loss" if uses_it else "mean(losses, sizes)"
    return f'f"epoch {{epoch}}  train loss {{{loss}:.4f}}"{val}'
