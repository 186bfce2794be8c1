#!/usr/bin/env bash
# Make this machine a node of a fleet: check it, install fedslm, enrol, start the service.
# For a Raspberry Pi 4 or 5 with a 64-bit system, or any Linux with systemd. It may be run again:
# what is done already is left alone. `install-node.sh --help` says the rest.
set -euo pipefail

readonly MIN_PYTHON="3.11"
# With torch. A node on an exported step (--edge) needs less.
min_memory_mib=1800
min_disk_mib=3072
readonly UNIT="fedslm-client.service"

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source_dir="$(dirname "$here")"
prefix="${HOME}/.local/lib/fedslm"
home="${XDG_DATA_HOME:-${HOME}/.local/share}/fedslm"
unit_dir="${XDG_CONFIG_HOME:-${HOME}/.config}/systemd/user"
python=""
token_file=""
data=""
base=""
extra="client"
changed=0
service=1
dry_run=0

usage() {
  cat <<'USAGE'
usage: install-node.sh [options]
  --token-file FILE  file with the enrolment token, mode 600; it is used up (default: the variable
                     FEDSLM_TOKEN; without either an enrolled device stays as it is)
  --data FILE        the records that this device may train on
  --base DIR         folder of the base model (default: the embedded demo model)
  --edge             a node without torch: --base is the folder of an exported step (docs/edge.md)
  --home DIR         folder of the device (default: ~/.local/share/fedslm)
  --prefix DIR       where the program goes (default: ~/.local/lib/fedslm)
  --source PATH      folder of the sources, or a wheel (default: the folder around this script)
  --python PATH      interpreter to use (default: the first of python3.11 .. python3 that will do)
  --no-service       install and enrol, but no service
  --dry-run          check, and say what would be done; change nothing
USAGE
}

say() { printf '%s\n' "$*"; }
warn() { printf 'warning: %s\n' "$*" >&2; }
die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# Run a command, or say it. Nothing that changes anything is run in another way.
run() {
  if ((dry_run)); then
    printf 'would run:'
    printf ' %q' "$@"
    printf '\n'
  else
    "$@"
  fi
}

value() { [[ $# -ge 2 && -n $2 ]] || die "$1 needs a value; see --help"; }

parse() {
  while (($#)); do
    case "$1" in
      --token-file) value "$@" && token_file="$2" && shift ;;
      --data) value "$@" && data="$2" && shift ;;
      --base) value "$@" && base="$2" && shift ;;
      --home) value "$@" && home="$2" && shift ;;
      --prefix) value "$@" && prefix="$2" && shift ;;
      --source) value "$@" && source_dir="$2" && shift ;;
      --python) value "$@" && python="$2" && shift ;;
      --edge) extra="edge" && min_memory_mib=450 && min_disk_mib=1024 ;;
      --no-service) service=0 ;;
      --dry-run) dry_run=1 ;;
      -h | --help) usage && exit 0 ;;
      *) die "unknown option $1; see --help" ;;
    esac
    shift
  done
}

check_machine() {
  local machine bits
  machine="$(uname -m)"
  case "$machine" in
    x86_64 | aarch64 | arm64) ;;
    armv6l | armv7l)
      die "this system is 32-bit ($machine); torch needs a 64-bit system: install the 64-bit image" ;;
    *) die "architecture $machine is not supported; expected x86_64 or aarch64" ;;
  esac
  bits="$(getconf LONG_BIT)"
  # A 64-bit kernel under a 32-bit system is what some images for the Raspberry Pi are.
  [[ $bits == 64 ]] || die "the kernel is 64-bit but the system is $bits-bit; install the 64-bit image"
  ((EUID != 0)) || warn "running as root: the node would run as root; use the user who owns the data"

  local memory disk
  memory="$(awk '/^MemTotal:/ {print int($2 / 1024)}' /proc/meminfo)"
  ((memory >= min_memory_mib)) \
    || die "this machine has $memory MiB of memory, expected at least $min_memory_mib"
  local folder="$prefix"
  while [[ ! -d $folder ]]; do folder="$(dirname "$folder")"; done
  disk="$(df -Pm "$folder" | awk 'NR == 2 {print $4}')"
  [[ -x $prefix/bin/fedslm ]] || ((disk >= min_disk_mib)) \
    || die "$disk MiB are free for $prefix, expected at least $min_disk_mib"
  if [[ -r /sys/fs/cgroup/cgroup.controllers ]] \
    && ! grep -qw memory /sys/fs/cgroup/cgroup.controllers; then
    warn "the kernel does not limit memory: MemoryMax has no effect. On a Raspberry Pi add" \
      "cgroup_enable=memory to /boot/firmware/cmdline.txt and reboot"
  fi
  say "machine: $machine, $memory MiB of memory, $disk MiB free"
}

usable_python() {
  "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
  local candidate
  if [[ -n $python ]]; then
    usable_python "$python" || die "$python is older than $MIN_PYTHON, or has no venv module"
  else
    for candidate in python3.11 python3.12 python3.13 python3; do
      if usable_python "$candidate"; then
        python="$candidate"
        break
      fi
    done
    [[ -n $python ]] \
      || die "no Python >= $MIN_PYTHON with venv found (Debian: apt-get install python3-venv)"
  fi
  say "python: $("$python" -c 'import platform; print(platform.python_version())')"
}

install_program() {
  local pins="cpu.txt" constraints target="$source_dir" key="" stamp
  local -a limits=()
  # On ARM, torch's default build would bring CUDA; this file lets no package of it in.
  case "$(uname -m)" in aarch64 | arm64) pins="aarch64.txt" ;; esac
  constraints="$source_dir/constraints/$pins"
  if [[ -f $source_dir && $source_dir == *.whl ]]; then
    constraints="$(dirname "$source_dir")/constraints/$pins"
  elif [[ ! -f $source_dir/pyproject.toml ]]; then
    die "$source_dir is neither the folder of the sources nor a wheel"
  fi
  if [[ -f $constraints ]]; then limits=(-c "$constraints"); else
    warn "no constraints beside $source_dir: newer versions than the tested ones may come"
  fi
  # What is installed is a function of these; their hash names what is there.
  if [[ -d $source_dir ]]; then
    key="$(cat "$source_dir/pyproject.toml" "$source_dir"/constraints/*.txt | cksum | cut -d' ' -f1)"
  else
    key="$(cksum <"$source_dir" | cut -d' ' -f1)"
  fi
  stamp="$prefix/installed-$extra-$key"
  if [[ -e $stamp && -x $prefix/bin/fedslm ]]; then
    say "program: installed already in $prefix"
    return
  fi
  say "program: installing fedslm[$extra] into $prefix (once; torch alone is about 200 MB)"
  changed=1
  [[ -x $prefix/bin/python ]] || run "$python" -m venv "$prefix"
  local -a pip=("$prefix/bin/python" -m pip install --no-input --disable-pip-version-check
    --progress-bar off "${limits[@]}")
  run "${pip[@]}" hatchling
  run "${pip[@]}" --no-build-isolation "${target}[$extra]" || die "the installation failed.
  If pip did not find torch's \"+cpu\" build: set PIP_EXTRA_INDEX_URL to PyTorch's CPU wheel index
  (PyTorch's installation page names it) and run this again."
  # An older stamp would call this version installed after the next one has taken its place.
  run rm -f "$prefix"/installed-*
  run touch "$stamp"
}

enrol() {
  local fedslm="$prefix/bin/fedslm"
  if [[ -f $home/node.toml ]]; then
    say "enrolment: done already in $home"
    return
  fi
  local token="${FEDSLM_TOKEN:-}"
  if [[ -n $token_file ]]; then
    [[ -r $token_file ]] || die "the token file $token_file cannot be read"
    token="$(tr -d '[:space:]' <"$token_file")"
  fi
  if [[ -z $token ]]; then
    warn "not enrolled and no token: ask the operator for one, then run this again"
    service=0
    return
  fi
  [[ -n $data ]] || die "--data is missing: which records may this device train on?"
  [[ -r $data ]] || die "the data file $data cannot be read"
  local -a options=(--data "$(cd "$(dirname "$data")" && pwd)/$(basename "$data")" --home "$home")
  [[ -z $base ]] || options+=(--base "$base")
  if ((dry_run)); then
    say "would enrol into $home with the token that was given"
    return
  fi
  # By standard input: other users of this machine can read command lines.
  "$fedslm" client enroll - "${options[@]}" <<<"$token"
  [[ -z $token_file ]] || rm -f "$token_file"
}

install_service() {
  local unit="$here/systemd/$UNIT" wanted
  if ! ((service)); then
    say "service: not installed"
    return
  fi
  command -v systemctl >/dev/null || die "systemctl is missing; use --no-service and start it yourself"
  [[ -f $unit ]] || die "$unit is missing beside this script"
  local -a edits=(-e "s|%h/.local/lib/fedslm|$prefix|g" -e "s|%h/.local/share/fedslm|$home|g")
  [[ $extra != edge ]] || edits+=(-e "s|^MemoryHigh=.*|MemoryHigh=600M|" -e "s|^MemoryMax=.*|MemoryMax=800M|")
  wanted="$(sed "${edits[@]}" "$unit")"
  if [[ -f $unit_dir/$UNIT && $(<"$unit_dir/$UNIT") == "$wanted" ]]; then
    say "service: $UNIT is up to date"
  elif ((dry_run)); then
    say "would write $unit_dir/$UNIT"
  else
    mkdir -p "$unit_dir"
    printf '%s\n' "$wanted" >"$unit_dir/$UNIT"
    say "service: wrote $unit_dir/$UNIT"
  fi
  run systemctl --user daemon-reload
  run systemctl --user enable --now "$UNIT"
  # A node that runs still runs the version before.
  ((!changed)) || run systemctl --user try-restart "$UNIT"
  run loginctl enable-linger "$(id -un)" \
    || warn "without lingering the node stops at logout: ask for  loginctl enable-linger $(id -un)"
}

main() {
  parse "$@"
  check_machine
  find_python
  install_program
  enrol
  install_service
  ((dry_run)) && say "nothing was changed" && return
  say "done. The policy that decides what this device takes part in: $home/policy.toml"
  say "look at it with: $prefix/bin/fedslm client status --home $home"
}

main "$@"
