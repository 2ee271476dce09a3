# shellcheck shell=bash disable=SC2154,SC2034,SC1091
# Sourced by ./moebius when something may be missing or out of date. Steps, each skipped when its stamp is current:
#   system packages (system.sh) -> libtorch and build tools (fetch.sh) -> configure -> build.
# A stamp is written last, so an interrupted step is simply done again. One caller at a time works on a checkout.
# Uses from ./moebius: root, setup, home, state, key, torch_dir, new_torch_dir, cuda_choice, has_driver, nvcc_path.

logs=$home/logs

say() { printf 'moebius: %s\n' "$*" >&2; }

# die CODE MESSAGE LINE...: 2 = the user has to do something, 1 = something broke.
die() {
  local code=$1; shift
  printf 'moebius: error: %s\n' "$1" >&2; shift
  if (($#)); then printf '  %s\n' "$@" >&2; fi
  exit "$code"
}

version_at_least() {  # version_at_least 3.25.1 3.24
  [[ $(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1) == "$2" ]]
}

# Stamps of single steps: the wanted content decides.
step_is_done() { [[ -r $state/$1 && $(<"$state/$1") == "$2" ]]; }
step_done() { printf '%s\n' "$2" >"$state/$1.partial" && mv -f -- "$state/$1.partial" "$state/$1"; }

take_lock() {
  mkdir -p -- "$state" "$logs" || die 1 "cannot write in $home" "Check the permissions and the free space of the checkout."
  exec 9>>"$home/lock"
  if ! flock -n 9; then
    say "another ./moebius is preparing this checkout; waiting for it"
    flock 9
  fi
}
release_lock() { exec 9>&-; }

interrupted() {
  printf '\n' >&2
  say "interrupted; the next call goes on from here"
  exit 130
}

source "$setup/versions.env"
source "$setup/system.sh"
source "$setup/fetch.sh"

# Runs Ninja, with every line in a log; on a terminal the progress is one line that is written over.
run_ninja() {  # run_ninja LOG ARGS...
  local log=$1 line width; shift
  if [[ ! -t 2 ]]; then
    "$ninja" "$@" 2>&1 9>&- | tee -- "$log" >&2
    return "${PIPESTATUS[0]}"
  fi
  width=$(tput cols 2>/dev/null) || width=80
  NINJA_STATUS='[%f/%t, %es] ' "$ninja" "$@" 2>&1 9>&- | tee -- "$log" | while IFS= read -r line; do
    if [[ $line == \[*/*\]* ]]; then
      printf '\r\033[K%s' "${line:0:width-1}" >&2
    else
      printf '\n%s' "$line" >&2
    fi
  done
  local status=("${PIPESTATUS[@]}")
  printf '\r\033[K' >&2
  return "${status[0]}"
}

# A compiler process of this project needs up to 1.5 GiB.
default_jobs() {
  local cores memory_kib by_memory
  cores=$(nproc)
  memory_kib=$(awk '/^MemAvailable:/ {print $2}' /proc/meminfo)
  by_memory=$((memory_kib / 1572864))
  if ((by_memory < 1)); then by_memory=1; fi
  echo $((cores < by_memory ? cores : by_memory))
}

configure() {  # configure PRESET
  local preset=$1 build=$root/build/$1 log=$logs/configure-$1.log options=() cuda=OFF started=$SECONDS
  if [[ -n $nvcc && $preset != asan ]]; then
    cuda=ON
    options+=("-DCMAKE_CUDA_COMPILER=$nvcc")
  fi
  local wanted="$key | $cmake | $torch | $ninja | $nvcc"
  if [[ -f $build/build.ninja ]] && step_is_done "$preset-configured" "$wanted"; then return; fi
  if [[ -f $build/CMakeCache.txt ]] && ! step_is_done "$preset-configured" "$wanted"; then
    rm -rf -- "$build/CMakeCache.txt" "$build/CMakeFiles"
  fi
  say "configuring build/$preset (CUDA plug-in: $([[ $cuda == ON ]] && echo "with $nvcc" || echo no))"
  read -r -a extra <<<"${MOEBIUS_CMAKE_ARGS:-}"
  if ! (cd -- "$root" && "$cmake" --preset "$preset" "-DCMAKE_MAKE_PROGRAM=$ninja" "-DMOEBIUS_TORCH_DIR=$torch" \
      "-DMOEBIUS_CUDA=$cuda" ${options[@]+"${options[@]}"} ${extra[@]+"${extra[@]}"}) >"$log" 2>&1 9>&-; then
    tail -n 25 -- "$log" >&2
    die 1 "CMake could not configure build/$preset" "Log: $log" \
      "If a package was removed or changed meanwhile: ./moebius clean, then the same command again."
  fi
  step_done "$preset-configured" "$wanted"
  say "configured in $((SECONDS - started)) s"
}

build() {  # build PRESET program|all
  local preset=$1 what=$2 log=$logs/build-$1.log target=all started=$SECONDS
  if [[ $what == program ]]; then target=moebius_program; fi
  say "building build/$preset ($what)"
  if ! run_ninja "$log" -C "$root/build/$preset" -j "${MOEBIUS_JOBS:-$(default_jobs)}" "$target"; then
    if [[ ! -t 2 ]]; then grep -m 3 -nE 'error:|FAILED:' -- "$log" >&2; fi
    die 1 "the build of build/$preset failed" "Log: $log" \
      "A compiler that was 'Killed' ran out of memory: try MOEBIUS_JOBS=1 (it goes on where it stopped)."
  fi
  say "built in $((SECONDS - started)) s"
}

# prepare_all PRESET program|all: everything current, or the program ends with a message.
prepare_all() {
  local preset=$1 what=$2 stamp
  stamp=$state/$preset-$what.stamp
  trap interrupted INT TERM
  take_lock
  if [[ ! -d $root/build ]]; then say "first call: setting up this checkout (about 10 minutes on 2 cores)"; fi
  if [[ -n ${new_torch_dir+set} ]]; then
    if [[ -n $torch_dir ]]; then
      check_torch_dir "$torch_dir"
      torch_dir=$(readlink -f -- "$torch_dir")
      key=${key/ torch=* cuda=/ torch=$torch_dir cuda=}
    fi
    step_done torch-dir "$torch_dir"
  fi
  ensure_system_packages
  ensure_fetched
  # The stamp carries the time at which the build began: what is edited during it counts as newer.
  printf '%s\n' "$key" >"$stamp.partial"
  configure "$preset"
  build "$preset" "$what"
  step_done ctest "$ctest"
  mv -f -- "$stamp.partial" "$stamp"
  if [[ $what == all ]]; then cp -p -- "$stamp" "$state/$preset-program.stamp"; fi
  release_lock
  trap - INT TERM
}

preset=release
take_preset() {  # take_preset NAME: checks it
  case ${1:-} in
    release | dev | asan) preset=$1 ;;
    *) die 2 "unknown preset '${1:-}'" "Presets are release, dev and asan." ;;
  esac
}

build_command() {
  while (($#)); do
    case $1 in
      --preset) take_preset "${2:-}"; shift 2 ;;
      --preset=*) take_preset "${1#*=}"; shift ;;
      *) die 2 "./moebius build does not know '$1'" "usage: ./moebius build [--preset release|dev|asan]" ;;
    esac
  done
  prepare_all "$preset" program
  say "build/$preset is current: build/$preset/bin/moebius"
}

clean_command() {
  if (($# > 1)) || [[ ${1:-} != "" && ${1:-} != --all ]]; then
    die 2 "./moebius clean does not know '$*'" "usage: ./moebius clean [--all]"
  fi
  take_lock
  rm -rf -- "$root/build" "$state"/*-program.stamp "$state"/*-all.stamp "$state"/*-configured
  if [[ ${1:-} == --all ]]; then rm -rf -- "$home"; fi
  say "deleted build/$([[ ${1:-} == --all ]] && echo ' and .moebius/')"
}
