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
            test (count $lines) -gt 0; and printf '%s\n' $lines
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
