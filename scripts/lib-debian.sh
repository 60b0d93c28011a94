# shellcheck shell=bash
# Debian file systems in image files, for golden-pair and demo; sourced after lib.sh.
# Needs private_mounts first. $MNT, an empty folder, is where a disk is mounted.

DEBIAN_UUID=00000000-0000-4000-8000-00000000071d
export SOURCE_DATE_EPOCH=1735689600

need_debian_tools() {
    need mmdebstrap=mmdebstrap mke2fs=e2fsprogs losetup=mount \
        /usr/share/keyrings/debian-archive-keyring.gpg=debian-archive-keyring
}

make_fs() { # make_fs FILE SIZE [mke2fs options]
    local file=$1 size=$2
    shift 2
    truncate --size "$size" -- "$file"
    mke2fs -q -F -t ext4 -U "$DEBIAN_UUID" \
        -E "hash_seed=$DEBIAN_UUID,lazy_itable_init=0,lazy_journal_init=0" "$@" -- "$file"
}

with_mounted() { # with_mounted FILE COMMAND...
    local file=$1
    shift
    mount -o loop,noatime -- "$file" "$MNT"
    "$@"
    umount --recursive -- "$MNT"
}

unpack() { tar --extract --file "$1" --directory "$MNT" --numeric-owner --xattrs --xattrs-include='*'; }

# By way of a tar file: mmdebstrap in place would leave its downloads behind in free blocks.
bootstrap() { # bootstrap FILE SIZE RELEASE PACKAGE,...
    mmdebstrap --quiet --mode=root --variant=minbase --include="$4" "$3" "$1.tar"
    make_fs "$1" "$2"
    with_mounted "$1" unpack "$1.tar"
    rm -- "$1.tar"
}

# Downloads and package lists go to a tmpfs, so that only what is installed changes the disk.
enter_chroot() { # enter_chroot COMMAND...
    mount -t proc proc "$MNT/proc"
    mount -t sysfs -o ro sys "$MNT/sys"
    mount --bind /dev "$MNT/dev"
    mount -t tmpfs tmpfs "$MNT/tmp"
    mount -t tmpfs tmpfs "$MNT/var/cache/apt"
    mount -t tmpfs tmpfs "$MNT/var/lib/apt/lists"
    mkdir -p "$MNT/var/cache/apt/archives/partial"
    [[ -e $MNT/etc/resolv.conf ]] || : >"$MNT/etc/resolv.conf"
    mount --bind "$(readlink -f /etc/resolv.conf)" "$MNT/etc/resolv.conf"
    printf '#!/bin/sh\nexit 101\n' >"$MNT/usr/sbin/policy-rc.d" # no daemons in the chroot
    chmod +x "$MNT/usr/sbin/policy-rc.d"
    "$@"
    rm -- "$MNT/usr/sbin/policy-rc.d"
}

in_chroot() {
    env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 \
        DEBIAN_FRONTEND=noninteractive SOURCE_DATE_EPOCH="$SOURCE_DATE_EPOCH" \
        chroot "$MNT" "$@" </dev/null
}
