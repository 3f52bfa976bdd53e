# fish completion for livepatch: livepatch completion fish | source, or keep this as completions/livepatch.fish.
function __livepatch_complete
    set -lx COMP_LINE (commandline -cp)
    set -lx _LIVEPATCH_COMPLETE fish_complete
    set -l option (string match -r -- '^--[^=]*=' (commandline -ct))
    set -l word (string replace -r -- '^--[^=]*=' '' (commandline -ct))
    set -l command (string replace -r -- '^~/' "$HOME/" (commandline -opc)[1])
    for item in ($command 2>/dev/null)
        set -l parts (string split \t -- $item)
        switch $parts[1]
            case plain
                printf '%s%s\t%s\n' "$option" $parts[2] "$parts[3]"
            case command
                __fish_complete_command
            case dir
                printf "$option%s\n" (complete -C "'' $word" | string match -r -- '^.*/(?=\t|$)')
            case file
                printf "$option%s\n" (complete -C "'' $word" | string replace -r -- '\t.*' '')
            case suffix
                set -l ends (string escape --style=regex -- $parts[2])
                printf "$option%s\n" (complete -C "'' $word" | string match -r -- "^.*(?:/|$ends)(?=\t|\$)")
        end
    end
end
complete --command livepatch --no-files --keep-order --arguments '(__livepatch_complete)'
