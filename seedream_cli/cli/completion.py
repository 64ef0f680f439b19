"""What a shell may put in the place of a word that has been begun: `seedream --complete SHELL WORD…`, at every Tab.

A person waits for the answer, so nothing here loads the command line itself: what can be typed stands in
`grammar.json`, which is made of the commands' own declarations (`manual.grammar`) and held current by a test.

The answer's first line is `words`, `files` or `folders`; for the latter two the shell looks itself. Each further line
is a word, for the shells that show it followed by its description. Nothing that a file of a stranger says can be
anything but a plain word.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

SHELLS = ("bash", "zsh", "fish", "powershell")

Node = dict[str, Any]

Item = tuple[str, str]


class Answer(NamedTuple):
    """Words with their descriptions, or who else knows: `kind` is words, files or folders."""

    kind: str
    items: Sequence[Item] = ()


NOTHING = Answer("words")


def respond(shell: str, words: Sequence[str]) -> str:
    """The answer's text. Bash and PowerShell hand in the line up to the cursor as one word, others word by word.

    The last word is the one that has been begun, "" where none is.
    """
    typed = split_line(words[0])[1:] if shell in {"bash", "powershell"} and words else list(words)
    begun = typed[-1] if typed else ""
    answer = complete(typed[:-1], begun, read_grammar())
    return "".join(f"{line}\n" for line in (answer.kind, *(_shown(shell, item, begun) for item in answer.items)))


def read_grammar() -> Node:
    """Everything that can be typed."""
    with open(__file__.removesuffix("completion.py") + "grammar.json", encoding="utf-8") as file:  # noqa: PTH123 - pathlib costs more than the rest of this
        grammar: Node = json.load(file)
    return grammar


def split_line(line: str) -> list[str]:
    """A command line's words as a shell reads them, the last one perhaps unfinished, or "" after a space."""
    words, quote, escaped = [""], "", False
    for char in line:
        if escaped:
            words[-1] += char
            escaped = False
        elif char == "\\" and quote != "'":
            escaped = True
        elif quote:
            words[-1], quote = words[-1] + (char if char != quote else ""), quote if char != quote else ""
        elif char in "\"'":
            quote = char
        elif char.isspace():
            words.append("")
        else:
            words[-1] += char
    return [word for word in words[:-1] if word] + words[-1:]


def _shown(shell: str, item: Item, begun: str) -> str:
    """A word as the shell takes it."""
    word, text = item
    if shell == "bash":
        # Bash ends a word at these too, and puts its answer after them.
        return word[max(begun.rfind("="), begun.rfind(":")) + 1 :]
    if shell == "zsh":
        return word.replace("\\", "\\\\").replace(":", "\\:") + (f":{text}" if text else "")
    return f"{word}\t{text}" if text else word


# --- what may stand here ----------------------------------------------------------------------------------------------


def complete(before: Sequence[str], begun: str, grammar: Node) -> Answer:
    """What may take the place of `begun` after the words before it."""
    place = _Place(grammar)
    for word in before:
        place.step(word)
    if place.waiting:
        return place.values(place.waiting, begun, "")
    if begun.startswith("-") and not place.ended:
        return place.options(begun)
    if place.node["commands"]:
        return _fitting(place.node["commands"], begun)
    return place.argument(begun)


class _Place:
    """Where on the line the cursor stands: the command, what was given to it, the option that waits for its value."""

    def __init__(self, grammar: Node) -> None:
        self.grammar = grammar
        self.path = ""
        self.given: dict[str, str] = {}
        self.arguments: list[str] = []
        self.waiting: Node | None = None
        self.ended = False

    @property
    def node(self) -> Node:
        """The command's own part of the grammar."""
        found: Node = self.grammar["nodes"][self.path]
        return found

    def step(self, word: str) -> None:
        """One word that is complete."""
        if self.waiting:
            self.given[self.waiting["names"][0]] = word
            self.waiting = None
        elif self.ended or not word.startswith("-") or word == "-":
            self.take(word)
        elif word == "--":
            self.ended = True
        else:
            self.take_option(word)

    def take(self, word: str) -> None:
        """A word that is no option: a command, or an argument."""
        if any(word == name for name, _ in self.node["commands"]):
            self.path = f"{self.path} {word}".strip()
        else:
            self.arguments.append(word)

    def take_option(self, word: str) -> None:
        """An option, with its value where that is joined to it."""
        option, value = self.joined(word)
        if option is None:
            return
        if option["takes"] and value is None:
            self.waiting = option
        self.given[option["names"][0]] = value or ""

    def joined(self, word: str) -> tuple[Node | None, str | None]:
        """The option of `--name=value`, `-nvalue` or a bare name, and the value; None where nothing is joined."""
        name, equals, value = word.partition("=") if word.startswith("--") else (word[:2], word[2:], word[2:])
        for option in self.node["options"]:
            if name in option["names"]:
                return option, value if equals else None
        return None, None

    def options(self, begun: str) -> Answer:
        """Names of options, or values where one is joined to its name."""
        option, value = self.joined(begun)
        if option is not None and value is not None and option["takes"]:
            return self.values(option, value, begun[: len(begun) - len(value)])
        named = [
            (name, option["help"])
            for option in self.node["options"]
            if option["repeats"] or option["names"][0] not in self.given
            for name in option["names"]
        ]
        return _fitting(sorted(named, key=lambda item: not item[0].startswith("--")), begun)

    def argument(self, begun: str) -> Answer:
        """The command's next argument."""
        taken = self.node["arguments"]
        position = min(len(self.arguments), len(taken) - 1) if taken and taken[-1]["repeats"] else len(self.arguments)
        return self.values(taken[position], begun, "") if position < len(taken) else NOTHING

    def values(self, entry: Node, begun: str, prefix: str) -> Answer:
        """What an option or argument may be; `prefix` is what stands before it in the same word."""
        source = entry["source"]
        if source in ("files", "folders"):
            return Answer(source)
        if isinstance(source, list):
            words: Sequence[Item] = [(word, "") for word in source]
        else:
            words = getattr(self, f"list_{source}")(begun) if source else ()
        return Answer("words", [(prefix + word, text) for word, text in _fitting(words, begun).items])

    # -- the lists that depend on more than the declaration

    def list_models(self, begun: str) -> Sequence[Item]:
        """Names of models; their ids too, once a first letter narrows them down."""
        rows = self.grammar["models"]
        names = [(row["name"], row["title"]) for row in rows]
        return names + [(other, row["title"]) for row in rows if begun for other in row["ids"]]

    def list_sizes(self, begun: str) -> Sequence[Item]:
        """Tiers of the model on the line, or of all; exact pixels too, once a digit narrows them down."""
        rows = self.rows()
        tiers = dict.fromkeys(size for row in rows for size in row["sizes"])
        pixels = dict.fromkeys(size for row in rows for size in row["pixels"] if begun)
        return [(size, "") for size in {**tiers, **pixels}]

    def list_aspects(self, begun: str) -> Sequence[Item]:  # noqa: ARG002 - one of a family
        """Shapes of the model on the line, or of all."""
        return [(aspect, "") for aspect in dict.fromkeys(aspect for row in self.rows() for aspect in row["aspects"])]

    def rows(self) -> Sequence[Node]:
        """The models that are meant: the one on the line, else all."""
        rows: list[Node] = self.grammar["models"]
        named = self.given.get("--model", "").lower()
        return [row for row in rows if named and named in (row["name"], *row["aliases"], *row["ids"])] or rows

    def list_providers(self, begun: str) -> Sequence[Item]:  # noqa: ARG002 - one of a family
        """Names of providers."""
        return [(name, title) for name, title in self.grammar["providers"]]

    def list_settings(self, begun: str) -> Sequence[Item]:
        """Keys of the settings files; those of providers once their first letters are there."""
        tables = [f"{table}." for table in self.grammar["tables"]]
        own = [f"providers.{name}.{key}" for name, _ in self.grammar["providers"] for key in self.grammar["own"]]
        inner = own if begun.startswith("providers.") else []
        return [(key, "") for key in [*self.grammar["settings"], *tables, *inner]]

    def list_values(self, begun: str) -> Sequence[Item] | Answer:
        """Values of the setting whose key is the argument before."""
        key = self.arguments[-1].rpartition(".")[2].replace("_", "-") if self.arguments else ""
        for option in self.grammar["nodes"]["generate"]["options"]:
            if f"--{key}" in option["names"] and option["source"] not in ("", "files", "folders"):
                return self.values(option, begun, "").items
        return []

    def list_profiles(self, begun: str) -> Sequence[Item]:  # noqa: ARG002 - one of a family
        """Names of the profiles in the files that would be read here; only plain words, as a stranger may have
        written them.
        """
        from ..config.config_file import find_places
        from ..config.environment import read_surroundings
        from ..config.load import read_documents

        surroundings = read_surroundings()
        places = find_places(surroundings, file=self.given.get("--config") or None)
        if str(places.user) == "-":
            return ()
        tables = [document.table.get("profiles") for document in read_documents(surroundings, places, [])]
        named = {name for table in tables if isinstance(table, dict) for name in table}
        return [(name, "") for name in sorted(named) if name.replace("-", "").replace("_", "").isalnum()]


def _fitting(items: Sequence[Sequence[str]], begun: str) -> Answer:
    """The items that begin so, each word once."""
    found: dict[str, str] = {}
    for word, text in items:
        if word.startswith(begun):
            found.setdefault(word, text)
    return Answer("words", list(found.items()))


# --- the scripts ------------------------------------------------------------------------------------------------------

_BASH = """\
# Completion of seedream for bash. Made by `python -m tests.test_completion`.
_seedream() {
    local kind="" line current="${COMP_WORDS[COMP_CWORD]}"
    [[ $current == = ]] && current=""
    COMPREPLY=()
    while IFS= read -r line; do
        if [[ -z $kind ]]; then kind=$line; else COMPREPLY+=("$line"); fi
    done < <("${1/#\\~/$HOME}" --complete bash "${COMP_LINE:0:COMP_POINT}" 2>/dev/null)
    # Readline's own completion of names knows about quotes and slashes; bash 3 cannot be asked for it here.
    case $kind in
        files) compopt -o default 2>/dev/null || while IFS= read -r line; do COMPREPLY+=("$line"); done < <(compgen -f -- "$current") ;;
        folders) compopt -o dirnames 2>/dev/null || while IFS= read -r line; do COMPREPLY+=("$line"); done < <(compgen -d -- "$current") ;;
    esac
}
complete -F _seedream seedream
"""  # noqa: E501 - lines of a script

_ZSH = """\
#compdef seedream
# Completion of seedream for zsh. Made by `python -m tests.test_completion`.
_seedream() {
  local -a lines
  lines=("${(@f)$("${${(Q)words[1]}/#\\~/$HOME}" --complete zsh "${(@Q)words[2,CURRENT-1]}" "${(Q)PREFIX}" 2>/dev/null)}")
  local kind=$lines[1]
  shift lines
  [[ $kind != words && $PREFIX == --*=* ]] && compset -P '*='
  case $kind in
    words) (( $#lines )) && _describe -t values 'seedream' lines ;;
    files) _files ;;
    folders) _files -/ ;;
  esac
}
if [[ $funcstack[1] == _seedream ]]; then _seedream "$@"; else compdef _seedream seedream; fi
"""  # noqa: E501

_FISH = """\
# Completion of seedream for fish. Made by `python -m tests.test_completion`.
function __seedream_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    set -l program (string replace -r '^~' $HOME -- $words[1])
    set -e words[1]
    set -l lines ($program --complete fish $words "$current" 2>/dev/null)
    set -l kind $lines[1]
    set -e lines[1]
    set -l joined (string match -r -- '^--[^=]*=' "$current")
    set -l value (string replace -r -- '^--[^=]*=' '' "$current")
    switch "$kind"
        case words
            test (count $lines) -gt 0; and printf '%s\\n' $lines
        case files
            for path in (__fish_complete_path "$value")
                echo "$joined$path"
            end
        case folders
            for path in (__fish_complete_directories "$value")
                echo "$joined$path"
            end
    end
end
complete -c seedream -f -a '(__seedream_complete)'
"""

_POWERSHELL = """\
# Completion of seedream for PowerShell. Made by `python -m tests.test_completion`.
Register-ArgumentCompleter -Native -CommandName seedream -ScriptBlock {
    param($wordToComplete, $commandAst, $cursorPosition)
    $line = $commandAst.ToString()
    $length = $cursorPosition - $commandAst.Extent.StartOffset
    if ($length -gt $line.Length) { $line += ' ' } else { $line = $line.Substring(0, $length) }
    # Where files go nothing is returned, and PowerShell offers files itself.
    & $commandAst.GetCommandName() --complete powershell $line 2>$null | Select-Object -Skip 1 | ForEach-Object {
        $word, $text = $_ -split "`t", 2
        if (-not $text) { $text = $word }
        [System.Management.Automation.CompletionResult]::new($word, $word, 'ParameterValue', $text)
    }
}
"""

SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH, "powershell": _POWERSHELL}
"""What makes each shell ask, without an end of line too many."""
