"""Scripts by which bash, zsh and fish complete the words of kvctl, made of kvcommands.py.

Each is for the shell's start file: ``eval "$(kvctl completion bash)"``. What is completed are
commands, options and the directory behind ``--data-dir``; no script asks a server for keys, so
pressing Tab neither waits nor tells anybody anything. Summaries stand in quotes of the shell's own,
so that nothing in them is ever carried out. Any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from conure.ops.kvcommands import COMMANDS, FILES, GENERAL, OPTIONS, SHELLS

__all__ = ["script_for"]

_BASH: Final = """\
# kvctl for bash: eval "$(kvctl completion bash)"
_kvctl() {{
    local word words command=""
    local cur="${{COMP_WORDS[COMP_CWORD]}}" prev="${{COMP_WORDS[COMP_CWORD-1]}}"
    if [[ $cur == "=" ]]; then
        cur=""
    elif [[ $prev == "=" ]]; then
        prev="${{COMP_WORDS[COMP_CWORD-2]}}"
    fi
    if [[ $prev == --data-dir || $prev == -data-dir ]]; then
        compopt -o filenames 2> /dev/null
        mapfile -t COMPREPLY < <(compgen -d -- "$cur")
        return
    fi
    case "${{prev#-}}" in
        {files})
            compopt -o filenames 2> /dev/null
            mapfile -t COMPREPLY < <(compgen -f -- "$cur")
            return ;;
    esac
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case "$word" in
            {names}) command="$word"; break ;;
        esac
    done
    case "$command" in
        "") words="{commands} {general}" ;;
{cases}
        *) words="{general}" ;;
    esac
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
}}
complete -F _kvctl kvctl
"""

_ZSH: Final = """\
#compdef kvctl
# kvctl for zsh: eval "$(kvctl completion zsh)", after compinit
_kvctl() {{
    local -a commands options
    local word command=""
    commands=(
{commands}
    )
    options=(
{general}
    )
    if [[ ${{words[CURRENT-1]}} == (-|--)data-dir ]]; then
        _files -/
        return
    elif [[ ${{words[CURRENT]}} == (-|--)data-dir=* ]]; then
        compset -P '*='
        _files -/
        return
    elif [[ ${{words[CURRENT-1]}} == (-|--)({files}) ]]; then
        _files
        return
    elif [[ ${{words[CURRENT]}} == (-|--)({files})=* ]]; then
        compset -P '*='
        _files
        return
    fi
    for word in "${{(@)words[2,CURRENT-1]}}"; do
        case "$word" in
            {names}) command="$word"; break ;;
        esac
    done
    case "$command" in
        "") _describe command commands ;;
{cases}
    esac
    _describe option options
}}
if (( $+functions[compdef] )); then
    compdef _kvctl kvctl
fi
"""

_FISH: Final = """\
# kvctl for fish: kvctl completion fish | source
complete -c kvctl -f
{lines}
"""


def script_for(shell: str) -> str:
    """Return the script for one of kvcommands.SHELLS."""
    return _SCRIPTS[shell]()


def _bash() -> str:
    cases = [
        f'        {name}) words="{_extra(name)}{_dashed(command.options)}{_dashed(GENERAL)}" ;;'
        for name, command in COMMANDS.items()
    ]
    return _BASH.format(
        names="|".join(COMMANDS),
        files="|".join(f"{dash}{name}" for name in FILES for dash in ("", "-")),
        commands=" ".join(COMMANDS),
        general=_dashed(GENERAL).strip(),
        cases="\n".join(case.replace(' "', '"') for case in cases),
    )


def _zsh() -> str:
    cases = []
    for name, command in COMMANDS.items():
        lines = [f"options+=({' '.join(_described(each) for each in command.options)})"]
        if name == "help":
            lines.append("_describe command commands")
        if name == "completion":
            lines.append(f"compadd -- {' '.join(SHELLS)}")
        cases.append(f"        {name}) {'; '.join(lines)} ;;")
    return _ZSH.format(
        names="|".join(COMMANDS),
        files="|".join(FILES),
        commands="\n".join(
            f"        {_pair(name, command.summary)}" for name, command in COMMANDS.items()
        ),
        general="\n".join(f"        {_described(each)}" for each in GENERAL),
        cases="\n".join(cases),
    )


def _fish() -> str:
    lines = [
        f"complete -c kvctl -n __fish_use_subcommand -a {name} -d {_quoted(command.summary)}"
        for name, command in COMMANDS.items()
    ]
    lines += [_fish_option(each, "") for each in GENERAL]
    for name, command in COMMANDS.items():
        lines += [_fish_option(each, name) for each in command.options]
    for name, words in (("completion", SHELLS), ("help", COMMANDS)):
        lines.append(
            f"complete -c kvctl -n '__fish_seen_subcommand_from {name}' -a '{' '.join(words)}'"
        )
    return _FISH.format(lines="\n".join(lines))


def _fish_option(name: str, command: str) -> str:
    condition = f" -n '__fish_seen_subcommand_from {command}'" if command else ""
    value = " -r -a '(__fish_complete_directories)'" if name == "data-dir" else ""
    if OPTIONS[name].value and not value:
        value = " -r -F" if name in FILES else " -x"
    return f"complete -c kvctl{condition} -l {name}{value} -d {_quoted(OPTIONS[name].summary)}"


def _extra(name: str) -> str:
    """Return the words that are completed as arguments of a command."""
    words = {"help": tuple(COMMANDS), "completion": SHELLS}.get(name, ())
    return "".join(f"{word} " for word in words)


def _dashed(names: tuple[str, ...]) -> str:
    return "".join(f"--{name} " for name in names)


def _described(name: str) -> str:
    return _pair(f"--{name}", OPTIONS[name].summary)


def _pair(word: str, summary: str) -> str:
    """Return a word and what it means, as zsh describes it."""
    escaped = summary.replace(":", "\\:")
    return _quoted(f"{word}:{escaped}")


def _quoted(text: str) -> str:
    """Return a text in single quotes, of which it has none itself."""
    assert "'" not in text, text
    return f"'{text}'"


_SCRIPTS: Final[Mapping[str, Callable[[], str]]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}
