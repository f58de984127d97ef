"""`completion bash|zsh|fish` prints a script for the shell, which asks `completion words ...` what completes a word.

Words come from the names and the comments of the configuration files, so that neither Hydra nor a model is loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import takewhile

from precision_lab.cli import meanings
from precision_lab.errors import expected, shown

ABOUT = "Prints a script that completes commands, settings and their values in a shell (bash, zsh or fish)"

_USAGE = """\
precision_lab completion

{about}.

Usage:
  precision-lab completion bash|zsh|fish

Examples:
  precision-lab completion bash > ~/.local/share/bash-completion/completions/precision-lab
      for bash, with the package bash-completion; without it: source <(precision-lab completion bash) in ~/.bashrc
  precision-lab completion zsh > ~/.zfunc/_precision-lab
      for zsh, with fpath+=(~/.zfunc) before compinit in ~/.zshrc
  precision-lab completion fish > ~/.config/fish/completions/precision-lab.fish
      for fish

Reads: the configuration files, when a word is completed.
Writes: nothing; it prints the script.

The console script `precision-lab` is completed, not `python -m precision_lab`.

Exit codes: 0 done; 2 a shell that is not known."""

_BASH = """\
# completion of precision-lab in bash
_precision_lab() {
    local line=${COMP_LINE:0:COMP_POINT} reply word cut
    local -a words
    read -r -a words <<< "$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    word=${words[-1]}
    cut=
    if [[ $word != [\\"\\']* ]]; then  # readline has broken the word at these already
        cut=${word%"${word##*[$COMP_WORDBREAKS]}"}
    fi
    COMPREPLY=()
    while IFS=$'\\t' read -r reply _; do
        [[ -n $reply ]] && COMPREPLY+=("${reply#"$cut"}")
    done < <(command "${words[0]}" completion words "${words[@]:1}" 2>/dev/null)
    [[ ${#COMPREPLY[@]} -gt 0 && ${COMPREPLY[0]} != *[=.,] ]] || compopt -o nospace 2>/dev/null
}
complete -o default -F _precision_lab precision-lab
"""

_ZSH = """\
#compdef precision-lab
# completion of precision-lab in zsh
_precision_lab() {
    local line
    local -a found about
    while IFS=$'\\t' read -r line rest; do
        [[ -n $line ]] && { found+=("$line"); about+=("$line${rest:+  -- $rest}") }
    done < <(command "${words[1]}" completion words "${(@)words[2,CURRENT]}" 2>/dev/null)
    if (( ${#found} )); then
        compadd -Q -S '' -l -d about -- "${found[@]}"
    else
        compset -P '*='
        _files
    fi
}
if [[ $funcstack[1] == _precision_lab ]]; then _precision_lab "$@"; else compdef _precision_lab precision-lab; fi
"""

_FISH = """\
# completion of precision-lab in fish
function __precision_lab_words
    set -l words (commandline -opc) (commandline -ct)
    command $words[1] completion words $words[2..-1] 2>/dev/null
end
complete -c precision-lab -f -a '(__precision_lab_words)'
complete -c precision-lab -n 'string match -q -- "*=*" (commandline -ct)' -F
"""

SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}
_WORDS = "words"
_OPENING = "'\"[{"


def task(arguments: Sequence[str]) -> int:
    """Prints a script, or the words that complete the last one of a command line, each with its meaning after a tab."""
    if "--help" in arguments:
        print(_USAGE.format(about=ABOUT))  # noqa: T201
        return 0
    if arguments and arguments[0] == _WORDS:
        for word, meaning in completions(arguments[1:]).items():
            print(f"{word}\t{meaning[:80]}".rstrip())  # noqa: T201
        return 0
    if len(arguments) != 1 or arguments[0] not in SCRIPTS:
        found = shown(" ".join(arguments)) if arguments else "none"
        choices = expected(SCRIPTS, arguments[0] if arguments else "")
        print(f"completion: the shell is {found}, {choices}", file=sys.stderr)  # noqa: T201
        return 2
    print(SCRIPTS[arguments[0]], end="")  # noqa: T201
    return 0


def completions(words: Sequence[str]) -> dict[str, str]:
    """What completes the last of `words`, the arguments of a command line, with meanings: whole words.

    A key ends in `=` where a value follows, or in `.` where another part does. Empty where only the user knows, as for
    the path of a file.
    """
    from precision_lab.cli import COMMANDS, COMPLETION, task_of

    *before, word = words or [""]
    word = word.lstrip("'\"")
    named = before[0] if before and before[0] in COMMANDS else None
    if before[:1] == [COMPLETION]:
        return _beginning(word, {shell: f"for {shell}" for shell in SCRIPTS}) if len(before) == 1 else {}
    root = meanings.root(task_of(named or "run", [*before, word])[1])
    key, equals, value = word.partition("=")
    if equals:
        return _values(root, key, value, before)
    found: dict[str, str] = {}
    if not before:
        from precision_lab.cli import help

        found = {name: help.summary(config) for name, (_, config) in COMMANDS.items()}
        found[COMPLETION] = ABOUT
    if word.startswith("-"):
        return _beginning(
            word, {"--help": "", "--multirun": "a sweep", "--config-dir": "", "--cfg": "", "--version": ""}
        )
    found |= {group.override: f"options of the group {group.name}" for group in root.groups}
    for task, override in _tasks(named or "run"):
        found |= {override: f"another task: {task}"}
    return _beginning(word, found | _keys(word, _settings(root, before)))


def _tasks(command: str) -> Iterator[tuple[str, str]]:
    from precision_lab.cli import TASKS

    return ((config, override) for (name, override), (_, config) in TASKS.items() if name == command)


def _settings(root: meanings.Root, before: Iterable[str]) -> dict[str, meanings.Setting]:
    """The settings of a command and of the model that is chosen, or of its default."""
    own = next((group.default for group in root.groups if group.name == "model"), "")
    model = [word.removeprefix("model=") for word in before if word.startswith("model=")]
    described = {key: setting for key, setting in root.settings.items() if setting.meaning}
    of_model = meanings.of_model(model[-1] if model else own) if own else {}
    return described | {key: each for key, each in of_model.items() if key.partition(".")[0] in described}


def _keys(word: str, settings: Mapping[str, meanings.Setting]) -> dict[str, str]:
    """The settings that begin with a word, up to the next dot."""
    at = word.lstrip("+~").rpartition(".")[0]
    prefix = word[: len(word) - len(word.lstrip("+~"))]
    found: dict[str, str] = {}
    for key, setting in settings.items():
        rest = key.removeprefix(f"{at}.") if at else key
        if at and rest == key:
            continue
        name, dot, _ = rest.partition(".")
        whole = f"{prefix}{at}.{name}" if at else f"{prefix}{name}"
        if dot:
            found.setdefault(f"{whole}.", settings[key.removesuffix(f".{rest.partition('.')[2]}")].meaning)
        elif not any(other.startswith(f"{key}.") for other in settings):
            found[f"{whole}="] = setting.meaning
    return found


def _values(root: meanings.Root, key: str, value: str, before: Sequence[str]) -> dict[str, str]:
    """The values of a setting or the options of a group, after what a list has already."""
    bare = key.lstrip("+~/")
    group = next((each for each in root.groups if each.override.lstrip("+/") == f"{bare}="), None)
    group = group or next((each for each in root.groups if "@" in bare and each.name == bare.partition("@")[0]), None)
    setting = _settings(root, before).get(bare)
    if group is not None:
        known, several = meanings.options(group.name), group.takes_several or "@" in bare
    elif bare == "only":
        names = [word.partition("=")[2] for word in before if word.lstrip("+").startswith("exp=")]
        known, several = dict.fromkeys(meanings.variants(names[-1] if names else ""), ""), True
    elif setting is not None:
        known, several = dict.fromkeys(setting.values, ""), setting.takes_several
    else:
        return {}
    given, comma, last = value.rpartition(",") if several else ("", "", value)
    opening = "".join(takewhile(lambda letter: letter in _OPENING, given + last)) if several else ""
    taken = set(given.strip(_OPENING).split(","))
    head = f"{given}{comma}" if comma else opening
    last = last if comma else last.removeprefix(opening)
    return {
        f"{key}={head}{name}": meaning for name, meaning in known.items() if name.startswith(last) and name not in taken
    }


def _beginning(word: str, found: Mapping[str, str]) -> dict[str, str]:
    return {name: meaning for name, meaning in found.items() if name.startswith(word)}
