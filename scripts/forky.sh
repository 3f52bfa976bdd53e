#!/bin/sh
# Pythons that the host does not have, from Debian's next release ("forky"): a small Debian in a folder, made once with
# debootstrap, and commands run in it with the checkout at its usual path.
#
# A container engine is not needed, only root: `unshare` gives every run a mount and a process namespace of its own. So
# nothing has to be unmounted and no process has to be hunted down, whether the run ends well, fails, or is killed: when
# its first process is gone, the kernel ends the others and drops the mounts. The host never sees either.
#
# The folder belongs to no checkout: it lies in the user's cache, and its name carries a checksum of the recipe below, so
# that a changed recipe makes a new one. It appears under its name only when it is complete.
set -eu
checkout=$(cd "$(dirname "$0")/.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/livepatch
root=$cache/forky-$(sed '/^# recipe/,/^# end/!d' "$0" | cksum | cut -d' ' -f1)

usage() {
    cat <<EOF
usage: scripts/forky.sh check          is it possible here? Prints the reason if not
       scripts/forky.sh make           make the folder (about 90 seconds), print where it is
       scripts/forky.sh run COMMAND... run a command in it, in the checkout
       scripts/forky.sh clean          remove it, and those of older recipes
EOF
}

say() { echo "forky: $*" >&2; }

# Prints why there can be no such folder here, and fails; or succeeds.
check() {
    if [ "$(uname -s)" != Linux ]; then
        echo "a Debian folder needs Linux."
    elif [ "$(id -u)" != 0 ]; then
        echo "a Debian folder needs root (run ./run test as root, or install that Python)."
    elif ! unshare --mount --pid --fork true 2>/dev/null; then
        echo "this environment does not let root make namespaces."
    elif ! command -v debootstrap >/dev/null && ! command -v apt-get >/dev/null; then
        echo "there is no debootstrap, and no apt-get to install it."
    else
        return 0
    fi
    return 1
}

# Runs "$0 inside ROOT COMMAND..." in namespaces of its own.
isolated() { unshare --mount --pid --fork --kill-child "$0" inside "$@"; }

# Shows PATH of the host at the same path below $1, as far as the host has it.
carry() {
    [ -e "$2" ] || return 0
    if [ ! -e "$1$2" ]; then
        if [ -d "$2" ]; then
            mkdir -p "$1$2"
        else
            mkdir -p "$1$(dirname "$2")"
            : >"$1$2"
        fi
    fi
    mount --rbind "$2" "$1$2"
}

# The first process of the new namespaces: mounts what a program expects, then runs the command below ROOT. It stays, as the
# parent of orphans, which would otherwise linger as zombies.
inside() {
    root=$1
    shift
    mount -t proc proc "$root/proc"
    mount -t tmpfs tmpfs "$root/tmp"
    carry "$root" /dev
    # The network as the host knows it: names, certificates, and how pip reaches its index.
    for path in /etc/resolv.conf /etc/hosts /etc/ssl/certs /etc/pip.conf "$HOME/.config/pip" "$HOME/.pip" \
        "${PIP_CONFIG_FILE:-/nonexistent}" "${PIP_CERT:-/nonexistent}" "${SSL_CERT_FILE:-/nonexistent}" \
        "${REQUESTS_CA_BUNDLE:-/nonexistent}" "$checkout"; do
        carry "$root" "$path"
    done
    # A process in a chroot may not make a user namespace, and tests do: the folder becomes the root of all mounts.
    mount --rbind "$root" "$root"
    cd "$root"
    pivot_root . .
    umount --lazy .
    trap : INT TERM
    # shellcheck disable=SC2016
    env -u PYENV_ROOT -u PYENV_VERSION -u PYTHONPATH -u PYTHONHOME -u VIRTUAL_ENV -u TMPDIR -u XDG_CACHE_HOME \
        -u XDG_CONFIG_HOME -u XDG_RUNTIME_DIR LC_ALL=C.UTF-8 LIVEPATCH_VENVS=.cache/forky \
        PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        chroot . sh -c 'cd "$0" && exec "$@"' "$checkout" "$@"
}

# Packages come from where the host's own come from; where the host is no Debian, from debootstrap's usual place.
mirror() {
    # shellcheck disable=SC2016
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' 2>/dev/null | head -n 1
}

# Sees to it that the folder exists; what its making printed is shown only if it failed.
make() {
    [ ! -d "$root" ] || return 0
    mkdir -p "$cache"
    say "making $root (once, about 90 seconds)"
    "$0" build >"$root.log" 2>&1 || {
        tail -n 30 "$root.log" >&2
        say "the Debian folder could not be made; the lines above, from $root.log, say why."
        exit 1
    }
}

build() {
    exec 9>"$cache/lock"
    flock 9                     # two checkouts may share the cache
    [ ! -d "$root" ] || return 0
    rm -rf "$cache"/new-*       # of a build that was killed
    export DEBIAN_FRONTEND=noninteractive
    proxy=
    if command -v apt-get; then
        eval "$(apt-config shell proxy Acquire::http::Proxy)"
        if ! command -v debootstrap; then
            apt-get update
            apt-get install -y --no-install-recommends debootstrap debian-archive-keyring
        fi
    fi
    [ -z "$proxy" ] || export http_proxy="$proxy"
    new=$(mktemp -d "$cache/new-XXXXXX")
    trap 'rm -rf "$new"' EXIT
    trap 'exit 130' INT TERM
    chmod 755 "$new"
# recipe
    # Debian's script for sid serves every later release; an older debootstrap does not know this one by name.
    # fuse3 is for the tests of `livepatch mount`, openssh-client for those of signatures.
    unshare --mount debootstrap --variant=minbase --force-check-gpg --include=ca-certificates,fuse3,openssh-client,python3-venv \
        forky "$new" "$(mirror)" /usr/share/debootstrap/scripts/sid
    # Every Python that the release ships, not only its default one.
    # shellcheck disable=SC2016
    isolated "$new" sh -c 'apt-get install -y --no-install-recommends \
        $(apt-cache pkgnames python3. | grep -x "python3[.]1[4-9]-venv") && apt-get clean'
# end
    mv "$new" "$root"
}

verb=${1-}
[ $# -eq 0 ] || shift
case $verb in
    check) check ;;
    make) check >&2 && make && echo "$root" ;;
    run) check >&2 && make && isolated "$root" "$@" ;;
    build | inside) "$verb" "$@" ;;      # this script calls itself with these
    clean) rm -rf "$cache"/forky-* "$cache"/new-* ;;
    *) usage; exit 2 ;;
esac
