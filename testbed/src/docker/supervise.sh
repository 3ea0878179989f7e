# shellcheck shell=sh
# First process of an engine's namespaces: starts it, and kills and starts it again as a test says. supervise.sh FOLDER NAME
# Its data are in memory: to remove an image's thousands of files would take longer than most tests.
mount -t tmpfs tmpfs /run
mkdir "$0/data" "$0/exec"
mount -t tmpfs tmpfs "$0/data"
mount -t tmpfs tmpfs "$0/exec"
mkfifo "$0/orders"
# Open both ways: it never ends.
exec 3<>"$0/orders"
down=

# Told to end, it waits for the engine and then says that it ended; the engine itself gets the signal too.
serve() {
  (
    trap : TERM
    dockerd --host="unix://$0/docker.sock" --data-root="$0/data" --exec-root="$0/exec" --pidfile="$0/docker.pid" --config-file="$0/daemon.json" \
      --bridge=none --iptables=false --ip-forward=false --ip-masq=false --exec-opt=native.cgroupdriver=cgroupfs --cgroup-parent="/$1" || true
    echo ended >&3
  ) &
}

serve "$1"
while read -r order <&3; do
  case $order in
  ended) [ -n "$down" ] || exit 0 ;;
  kill)
    down=yes
    kill -KILL "$(cat "$0/docker.pid")" || true
    rm -f "$0/docker.pid"
    ;;
  outage)
    down=yes
    # All but this one.
    kill -KILL -1 || true
    rm -f "$0/docker.pid"
    umount --recursive --lazy "$0/exec"
    mount -t tmpfs tmpfs "$0/exec"
    ;;
  start)
    down=
    serve "$1"
    ;;
  end) exit 0 ;;
  esac
done
