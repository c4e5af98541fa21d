"""One word of a command line that changes the config, as Hydra spells it: key=value, +key=value or ~key."""


def get_key(word: str) -> str:
    """The key of an override, without the signs in front of it: "optimizer.lr" of "+optimizer.lr=0.1"."""
    return word.partition("=")[0].lstrip("+~")
