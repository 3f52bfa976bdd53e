#compdef livepatch
# zsh completion for livepatch: eval "$(livepatch completion zsh)" after compinit, or keep this as _livepatch in $fpath.
_livepatch() {
    local line type
    local -a response parts described bare globs
    response=("${(@f)$(COMP_LINE="${(j: :)words[1,CURRENT-1]} $PREFIX" _LIVEPATCH_COMPLETE=zsh_complete \
        ${(Q)~words[1]} 2>/dev/null)}")
    [[ $PREFIX != --*=* ]] || compset -P 1 '*='
    for line in $response; do
        parts=("${(@ps:\t:)line}")
        case $parts[1] in
            plain)
                if [[ -n $parts[3] ]]; then
                    described+=("${parts[2]//:/\\:}:$parts[3]")
                else
                    bare+=("$parts[2]")
                fi ;;
            command) _command_names -e ;;
            dir) _path_files -/ ;;
            file) _files ;;
            suffix) globs+=("*$parts[2]") ;;
        esac
    done
    (( ! $#globs )) || _files -g "$globs"
    (( ! $#described )) || _describe -V livepatch described
    (( ! $#bare )) || compadd -V livepatch -a bare
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    _livepatch "$@"
else
    compdef _livepatch livepatch
fi
