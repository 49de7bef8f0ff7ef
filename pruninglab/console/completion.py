"""Scripts that let a shell complete commands, options and choices, read off the parser itself."""

import argparse
from collections.abc import Iterator
from typing import Any

SHELLS = ("bash", "zsh", "fish")

_BASH = """\
_pruninglab() {
    local word=${COMP_WORDS[COMP_CWORD]}
    local words
    if [ "$COMP_CWORD" -eq 1 ]; then words="%(first)s"; else
    case "${COMP_WORDS[1]}" in
%(cases)s
    esac; fi
    COMPREPLY=($(compgen -W "$words" -- "$word") $([ "$COMP_CWORD" -gt 1 ] && compgen -f -- "$word"))
}
complete -o filenames -F _pruninglab pruninglab
"""
_ZSH = "autoload -U +X bashcompinit && bashcompinit\n"


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """What `source <(pruninglab completion bash)` reads."""
    commands = {name: (words, said) for name, words, said in _commands(parser)}
    if shell == "fish":
        return "".join(_fish(name, words, said) for name, (words, said) in commands.items())
    cases = "\n".join(f'        {name}) words="{" ".join(words)}" ;;' for name, (words, _) in commands.items())
    bash = _BASH % {"first": " ".join([*commands, "--help", "--version"]), "cases": cases}
    return (_ZSH if shell == "zsh" else "") + bash


def _commands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, list[str], str]]:
    """Each command with its options and choices, and its line of help."""
    groups: Any = parser._subparsers  # argparse has no public way
    for action in groups._group_actions:
        helps = {choice.dest: choice.help or "" for choice in action._get_subactions()}
        for name, command in action.choices.items():
            words = [str(word) for one in command._actions for word in (*one.option_strings, *(one.choices or ()))]
            yield name, words, helps.get(name, "")


def _fish(name: str, words: list[str], said: str) -> str:
    first = f"complete -c pruninglab -n __fish_use_subcommand -f -a {name} -d '{said}'\n"
    given = f"complete -c pruninglab -n '__fish_seen_subcommand_from {name}' -a '{' '.join(words)}'\n"
    return first + given
