# bash completion for livepatch: eval "$(livepatch completion bash)", or keep this where bash-completion looks.
_livepatch_completion() {
    local type value help width=0 word=${COMP_WORDS[COMP_CWORD]}
    local -a values=() helps=() files=()
    [[ $word != = ]] || word=
    COMPREPLY=()
    while IFS=$'\t' read -r type value help; do
        files=()
        case $type in
            plain) values+=("$value"); helps+=("$help"); (( ${#value} <= width )) || width=${#value} ;;
            command) mapfile -t COMPREPLY < <(compgen -c -- "$word") ;;
            dir) mapfile -t files < <(compgen -d -- "$word") ;;
            file) mapfile -t files < <(compgen -f -- "$word") ;;
            suffix) mapfile -t files < <(compgen -f -X "!*$value" -- "$word"; compgen -d -- "$word") ;;
        esac
        (( ! ${#files[@]} )) || { compopt -o filenames; COMPREPLY+=("${files[@]}"); }
    done < <(COMP_LINE=${COMP_LINE:0:COMP_POINT} _LIVEPATCH_COMPLETE=bash_complete "$1" 2>/dev/null)

    local index shown
    for index in "${!values[@]}"; do
        printf -v shown %q "${values[index]}"
        # Where all are listed, and none is inserted, each is listed with what it is.
        if [[ -n ${helps[index]} && ${#values[@]} -gt 1 && $COMP_TYPE == @(33|63|64) ]]; then
            printf -v shown '%-*s  (%s)' "$width" "$shown" "${helps[index]}"
            shown=${shown:0:${COLUMNS:-80}-1}
        fi
        COMPREPLY+=("$shown")
    done
}
complete -o nosort -F _livepatch_completion livepatch
