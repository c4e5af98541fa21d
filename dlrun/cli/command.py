"""Commands on click: free words beside the options, options typed as --name or as name=, and help for both."""

from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from typing import Any

import click
from click.shell_completion import CompletionItem

from dlrun.core.errors import RequestError
from dlrun.core.suggest import did_you_mean
from dlrun.core.terminal import write_out

# Words that may stand in place of the last one, given those before it; not all of them begin with it.
Suggest = Callable[[Sequence[str], str], Iterator[str]]
# Names of words with their meanings.
Rows = Sequence[tuple[str, str]]


class Choice(click.Choice[str]):
    """One of a few values; the error names the nearest."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The value itself; RequestError if it is none of the choices."""
        if value not in self.choices:
            name = str(param and param.name)
            hint = did_you_mean(value, self.choices, f"{name}=")
            raise RequestError(f"{name}={value} is not a {name}; {hint}type one of {', '.join(self.choices)}")
        return str(value)


class Count(click.ParamType[int]):
    """A whole number above 0."""

    name = "n"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number; RequestError for anything else."""
        text = str(value)
        if not text.isdecimal() or int(text) == 0:
            name = param and param.name
            raise RequestError(f"{name}={text} must be a whole number above 0; type --{name} 10")
        return int(text)


def _show_versions(ctx: click.Context, _param: click.Parameter, is_typed: bool) -> None:
    """Print the versions from the packages' metadata, as importing torch would take seconds, and exit."""
    if not is_typed or ctx.resilient_parsing:
        return
    for name, package in (("dlrun", "dlrun"), ("torch", "torch"), ("Hydra", "hydra-core")):
        # A source tree on PYTHONPATH has no metadata.
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            version = "not installed as a package"
        write_out(f"{name} {version}")

    ctx.exit()


def get_path(ctx: click.Context) -> str:
    """The words that name a command: "dlrun ls runs"; those of the group for its default command."""
    return ctx.parent.command_path if ctx.parent and ctx.command.hidden else ctx.command_path


_VERSION = click.Option(
    ["--version"], is_flag=True, is_eager=True, expose_value=False, hidden=True, callback=_show_versions
)


class Command(click.Command):
    """A command with free words, such as overrides of the config: what is no option of its own reaches the callback.

    `--` and all that follows it are words.
    """

    def __init__(
        self,
        name: str,
        callback: Callable[..., Any],
        *,
        usage: str,
        about: str,
        words: Rows = (),
        options: Sequence[click.Option] = (),
        examples: Sequence[str] = (),
        suggest: Suggest = lambda before, current: iter(()),
    ) -> None:
        """about: the help, whose first sentence stands in the list of commands."""
        words_argument = click.Argument(
            ["words"], nargs=-1, type=click.UNPROCESSED, metavar=usage, shell_complete=self.complete_words
        )
        super().__init__(
            name,
            # Hydra's flags are words.
            context_settings={"ignore_unknown_options": True},
            callback=callback,
            help=about,
            params=[words_argument, *options, _VERSION],
        )
        self.words = words
        self.examples = examples
        self.suggest = suggest

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse options in either spelling; all else goes into the words, in its order."""
        end = args.index("--") if "--" in args else len(args)
        try:
            super().parse_args(ctx, [self._to_flag(word) for word in args[:end]])
        except click.BadOptionUsage as error:
            problem = "has no value" if "requires" in error.message else "takes no value"
            advice = f"{get_path(ctx)} --help shows its options"
            raise RequestError(f"{error.option_name} {problem}; {advice}") from error

        # click would drop the dashes, which tell a command that no override follows.
        ctx.params["words"] += tuple(args[end:])
        return []

    def _to_flag(self, word: str) -> str:
        """`format=json` as `--format=json`, if the command has such an option."""
        # Without a short option click leaves words such as -cd as they are.
        if word == "-h":
            return "--help"
        is_option = any(word.startswith(f"{name}=") for name in self._list_option_names())
        return f"--{word}" if is_option else word

    def _list_option_names(self) -> list[str]:
        return [str(param.name) for param in self.params if _takes_value(param)]

    # Help

    def get_help(self, ctx: click.Context) -> str:
        """The text of --help; that of its group for the command that words without a command mean."""
        return ctx.parent.get_help() if self.hidden and ctx.parent else super().get_help(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the words and the options, and then examples."""
        self.format_words(ctx, formatter)
        self.format_examples(formatter)

    def format_words(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the words and the options."""
        if self.words:
            with formatter.section("Words"):
                formatter.write_dl(self.words)
        super().format_options(ctx, formatter)

    def format_examples(self, formatter: click.HelpFormatter) -> None:
        """Write the examples, a line each, to be copied."""
        with formatter.section("Examples"):
            for example in self.examples:
                formatter.write(f"{'':{formatter.current_indent}}{example}\n")

    # Completion

    def complete_words(self, ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
        """The words that begin like this one."""
        before = ctx.params["words"]
        suggestions = list(self.suggest(before, incomplete))
        if self.hidden and ctx.parent and not before:
            suggestions = [*ctx.parent.command.list_commands(ctx.parent), *suggestions]  # type: ignore[attr-defined]
        # At first a run is to be named.
        if before or incomplete:
            for param in filter(_takes_value, self.params):
                suggestions += suggest_values(incomplete, _list_spellings(param))
        return [word for word in dict.fromkeys(suggestions) if word.startswith(incomplete)]

    # As text: below click 8.5 the class takes no parameter.
    def shell_complete(self, ctx: click.Context, incomplete: str) -> "list[CompletionItem[str]]":
        """The flags that begin like this word, and those that are words."""
        words = self.complete_words(ctx, self.params[0], incomplete)
        return [*super().shell_complete(ctx, incomplete), *map(CompletionItem, words)]


def _takes_value(param: click.Parameter) -> bool:
    return isinstance(param, click.Option) and not param.is_flag


def _list_spellings(option: click.Parameter) -> list[str]:
    """`name=value` for each value of an option, or `name=` alone."""
    values = option.type.choices if isinstance(option.type, Choice) else ("",)
    return [f"{option.name}={value}" for value in values]


def suggest_values(current: str, words: Sequence[str]) -> list[str]:
    """Suggest from key=value words of one key: the key alone until it is typed, then the values.

    Of a list of values the last one is completed.
    """
    key, _, value = current.partition("=")
    if not words or not words[0].startswith(f"{key}=") or "=" not in current:
        return list(dict.fromkeys(f"{word.partition('=')[0]}=" for word in words))

    # "model=mlp,cn" is completed to "model=mlp,cnn".
    finished_values = value[: value.rfind(",") + 1]
    return [f"{key}={finished_values}{word.partition('=')[2]}" for word in words]


class Group(click.Group):
    """Commands under one name; words that begin with none of them belong to the command `default`."""

    def __init__(self, name: str, default: Command, commands: Sequence[click.Command]) -> None:
        super().__init__(name, help=default.help, add_help_option=False)
        default.hidden = True
        self.default = default
        for command in (*commands, default):
            self.add_command(command)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the name of the default command in front of words that begin with no command."""
        if not args or args[0] not in self.list_commands(ctx):
            args = [str(self.default.name), *args]
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands, in their order and without the default one."""
        return [name for name, command in self.commands.items() if not command.hidden]

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """The usage of the default command."""
        return self.default.collect_usage_pieces(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write words and options of the default command, the commands, and its examples."""
        self.default.format_words(ctx, formatter)
        self.format_commands(ctx, formatter)
        self.default.format_examples(formatter)
