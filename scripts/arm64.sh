#!/bin/sh
# A 64-bit ARM computer that is not there: a Debian with its own kernel and Python in an emulator, in memory only, and
# commands run in it as root with a copy of the checkout. It is slow (a start takes half a minute, and all takes ten times as
# long as usual), so it is for whoever changes attach/aarch64.py, by hand: the tests of every run have the emulator of
# single programs and recorded registers.
#
#     scripts/arm64.sh run python3 -m pytest -q -x tests/attach/test_injection.py
#
# Nothing of it is installed in the usual way, which would take that emulator too: the packages are unpacked, and that is
# enough for a Python. What is made is kept in the user's cache, under a name with a checksum of the recipe below.
set -eu
release=${LIVEPATCH_ARM64_RELEASE:-trixie}       # Python 3.13, and PAC and BTI in use; bookworm: Python 3.11
processor=${LIVEPATCH_ARM64_PROCESSOR:-max,pauth-impdef=on}
checkout=$(cd "$(dirname "$0")/.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/livepatch
root=$cache/arm64-$release-$(sed '/^# recipe/,/^# end/!d' "$0" | cksum | cut -d' ' -f1)

usage() {
    cat <<END
usage: scripts/arm64.sh make           make what is kept (some minutes, 300 MB)
       scripts/arm64.sh run COMMAND... start the computer, and run a command in the checkout there
       scripts/arm64.sh clean          remove what is kept
END
}

say() { echo "arm64: $*" >&2; }

need() {
    command -v "$1" >/dev/null || { say "$1 is missing; install the package $2 (Debian, Ubuntu)."; exit 1; }
}

make() {
    [ ! -d "$root" ] || return 0
    [ "$(id -u)" = 0 ] || { say "making it needs root."; exit 1; }
    need debootstrap debootstrap
    need cpio cpio
    mkdir -p "$cache"
    say "making $root (once, some minutes)"
    new=$(mktemp -d "$cache/new-arm64-XXXXXX")
    trap 'rm -rf "$new"' EXIT
    trap 'exit 130' INT TERM
    build >"$root.log" 2>&1 || {
        tail -n 30 "$root.log" >&2
        say "it could not be made; the lines above, from $root.log, say why."
        exit 1
    }
    mv "$new" "$root"
    trap - EXIT
}

build() {
    eval "$(apt-config shell proxy Acquire::http::Proxy)"
    [ -z "${proxy-}" ] || export http_proxy="$proxy"
    # shellcheck disable=SC2016
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' | head -n 1)
# recipe
    files=$new/files
    debootstrap --foreign --arch=arm64 --variant=minbase --force-check-gpg --include=linux-image-arm64,python3-venv,binutils \
        "$release" "$files" "$mirror" || return 1
    (cd "$files/var/cache/apt/archives" && for package in python3*.deb lib*.deb binutils*.deb linux-image-[0-9]*.deb; do
        dpkg-deb -x "$package" "$files" || exit 1
    done) || return 1
    mv "$files"/boot/vmlinuz-* "$new/kernel" || return 1
    version=$(cd "$files/usr/bin" && ls | grep -x 'python3[.][0-9]*')
    "$python" -m pip install --quiet --disable-pip-version-check --target "$files/packages" --only-binary=:all: \
        --implementation cp --python-version "${version#python}" --platform any \
        --platform manylinux2014_aarch64 --platform manylinux_2_28_aarch64 --platform manylinux_2_17_aarch64 \
        'pytest~=9.0' 'pytest-timeout~=2.4' 'pytest-xdist~=3.8' 'click>=8.1' 'rich>=13.7' 'gevent>=26.9' 'trio>=0.31' \
        'uvloop>=0.22' 'pyzmq>=27' 'psycopg[binary]>=3.3' || return 1
    rm -rf "$files/boot" "$files/lib/modules" "$files/usr/lib/modules" "$files/debootstrap" "$files"/var/cache/apt \
        "$files"/var/lib/apt "$files"/usr/share/doc "$files"/usr/share/locale "$files"/usr/share/man
    (cd "$files" && find . | cpio --quiet -o -H newc) >"$new/base" || return 1
# end
    rm -rf "$files"
}

run() {
    need qemu-system-aarch64 qemu-system-arm
    need cpio cpio
    make
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    trap 'exit 130' INT TERM
    mkdir "$work/files"
    (cd "$checkout" && tar -c --exclude=__pycache__ src tests bench pyproject.toml) | (mkdir "$work/files/checkout" && tar -x -C "$work/files/checkout")
    cat >"$work/files/init" <<'END'
#!/bin/sh
cd /
rm -f proc                        # a link, in an unpacked folder
mkdir -p proc sys dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/shm /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /tmp
chmod 1777 /tmp /dev/shm
export HOME=/root PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 PYTHONPATH=/checkout/src:/checkout:/packages
python3 -c '
import fcntl, socket, struct
fcntl.ioctl(socket.socket(), 0x8914, struct.pack("16sh14x", b"lo", 0x49))'  # the loopback network is up
cd /checkout
sh /command
echo "arm64-status: $?"
echo o >/proc/sysrq-trigger
sleep 60
END
    chmod 755 "$work/files/init"
    for word; do
        printf "'%s' " "$(printf %s "$word" | sed "s/'/'\\\\''/g")"
    done >"$work/files/command"
    (cd "$work/files" && find . | cpio --quiet -o -H newc) >"$work/more"
    cat "$root/base" "$work/more" >"$work/all"
    qemu-system-aarch64 -M virt -cpu "$processor" -smp 2 -m 3G -nographic -no-reboot -nic none -kernel "$root/kernel" \
        -initrd "$work/all" -append "console=ttyAMA0 quiet panic=-1" </dev/null | tee "$work/output"
    status=$(tr -d '\r' <"$work/output" | sed -n 's/^arm64-status: //p')
    [ -n "$status" ] || { say "the computer has stopped before the command was done."; exit 1; }
    exit "$status"
}

python=$(command -v "$checkout/.venv/bin/python" || command -v python3)
verb=${1-}
[ $# -eq 0 ] || shift
case $verb in
    make) make && echo "$root" ;;
    run) run "$@" ;;
    clean) rm -rf "$cache"/arm64-* "$cache"/new-arm64-* ;;
    *) usage; exit 2 ;;
esac
