"""Nets for sequences."""

from dlrun.eject.plain.source import call, filled
from dlrun.eject.plain.training_run import TrainingRun

_PACKED = '''\
class Net(nn.Module):
    """Embedding, recurrent layers, linear layer; packed, so that padding never reaches the recurrent layers."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding($codes, $embedding_size, padding_idx=0)
        $recurrent
        self.classifier = nn.Linear($width, $outputs)

    def forward(self, codes, lengths):  # (B, T) and (B,) -> $shape
        packed = pack_padded_sequence(self.embedding(codes), lengths, batch_first=True, enforce_sorted=False)
        outputs, _ = self.recurrent(packed)  #? tags
        padded, _ = pad_packed_sequence(outputs, batch_first=True, total_length=codes.shape[1])  #? tags
        return self.classifier(padded)  #? tags
        _, $state = self.recurrent(packed)  # the last states: (layers x directions, B, hidden size)  #? !tags
        return self.classifier(torch.cat([$last], dim=-1))  #? !tags & both
        return self.classifier(state[-1].clone())  # memory of its own: products round by address  #? !tags & !both
'''
_ONE_HOT = '''\
class Net(nn.Module):
    """One-hot letters in; the states themselves, within (-1, 1), are the logits."""

    def __init__(self):
        super().__init__()
        self.recurrent = nn.$cell

    def forward(self, codes, lengths):  # (B, T) and (B,) -> (B, T, $outputs)
        letters = F.one_hot(codes, $codes)[..., 1:].to($dtype)
        return self.recurrent(letters)[0]  #? !loop
        state, states = None, []  #? loop
        for letter in letters.unbind(1):  # a time step  #? loop
            state = self.recurrent(letter, state)  #? loop
            states.append(state)  #? loop
        return torch.stack(states, 1)  #? loop
'''


def rnn(
    run: TrainingRun, embedding_size: int, hidden_size: int, layers: int, bidirectional: bool, dropout: float
) -> str:
    """See models/recurrent.py."""
    return _packed(run, "RNN", embedding_size, hidden_size, layers, bidirectional, dropout)


def lstm(
    run: TrainingRun, embedding_size: int, hidden_size: int, layers: int, bidirectional: bool, dropout: float
) -> str:
    """See models/recurrent.py."""
    return _packed(run, "LSTM", embedding_size, hidden_size, layers, bidirectional, dropout)


def gru(
    run: TrainingRun, embedding_size: int, hidden_size: int, layers: int, bidirectional: bool, dropout: float
) -> str:
    """See models/recurrent.py."""
    return _packed(run, "GRU", embedding_size, hidden_size, layers, bidirectional, dropout)


def _packed(
    run: TrainingRun, cell: str, embedding: int, hidden: int, layers: int, bidirectional: bool, dropout: float
) -> str:
    arguments = [str(embedding), str(hidden)]
    arguments += [f"num_layers={layers}"] if layers > 1 else []
    arguments += ["batch_first=True"]
    arguments += ["bidirectional=True"] if bidirectional else []
    arguments += [f"dropout={dropout}"] if dropout > 0 else []
    tags = run.spec.task == "tagging"
    return filled(
        _PACKED,
        {"tags": tags, "both": bidirectional},
        codes=len(run.spec.vocabulary),
        embedding_size=embedding,
        recurrent=call(f"self.recurrent = nn.{cell}", arguments),
        width=hidden * (1 + bidirectional),
        outputs=run.spec.output_size,
        shape=f"(B, T, {run.spec.output_size})" if tags else f"(B, {run.spec.output_size})",
        state="(state, _)" if cell == "LSTM" else "state",
        last="state[-2], state[-1]",
    )


def one_hot(run: TrainingRun) -> str:
    """See models/one_hot.py."""
    letters = len(run.spec.vocabulary) - 1
    return _states(run, f"RNN({letters}, {run.spec.output_size}, batch_first=True)", False)


def one_hot_cell(run: TrainingRun) -> str:
    """See models/one_hot.py."""
    return _states(run, f"RNNCell({len(run.spec.vocabulary) - 1}, {run.spec.output_size})", True)


def _states(run: TrainingRun, cell: str, loop: bool) -> str:
    codes, outputs = len(run.spec.vocabulary), run.spec.output_size
    return filled(_ONE_HOT, {"loop": loop}, cell=cell, codes=codes, outputs=outputs, dtype=run.dtype)
