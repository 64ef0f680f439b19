# Completion of seedream for bash. Made by `python -m tests.test_completion`.
_seedream() {
    local kind="" line current="${COMP_WORDS[COMP_CWORD]}"
    [[ $current == = ]] && current=""
    COMPREPLY=()
    while IFS= read -r line; do
        if [[ -z $kind ]]; then kind=$line; else COMPREPLY+=("$line"); fi
    done < <("${1/#\~/$HOME}" --complete bash "${COMP_LINE:0:COMP_POINT}" 2>/dev/null)
    # Readline's own completion of names knows about quotes and slashes; bash 3 cannot be asked for it here.
    case $kind in
        files) compopt -o default 2>/dev/null || while IFS= read -r line; do COMPREPLY+=("$line"); done < <(compgen -f -- "$current") ;;
        folders) compopt -o dirnames 2>/dev/null || while IFS= read -r line; do COMPREPLY+=("$line"); done < <(compgen -d -- "$current") ;;
    esac
}
complete -F _seedream seedream
