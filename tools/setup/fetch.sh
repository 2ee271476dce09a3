# shellcheck shell=bash disable=SC2154,SC2034,SC1091
# libtorch and build tools. Sourced by prepare.sh. Python's venv serves only to fetch and unpack wheels into
# .moebius/venv; nothing of Python is used when moebius runs.
# Sets: torch (folder with include/ and lib/), cmake, ninja, nvcc ("" when the CUDA plug-in is not built).

venv=$home/venv

ensure_venv() {
  if [[ -x $venv/bin/python ]] && step_is_done venv "$venv"; then return; fi
  rm -rf -- "$venv" "$state"/wheels-*
  say "making a Python environment to fetch with (.moebius/venv)"
  if ! python3 -m venv -- "$venv" >"$logs/venv.log" 2>&1; then
    cat -- "$logs/venv.log" >&2
    die 1 "python3 -m venv failed" "Log: $logs/venv.log" "Install python3-venv (Debian, Ubuntu) and call again."
  fi
  site_packages=
  step_done venv "$venv"
}

find_site_packages() {
  local candidates=("$venv"/lib/python3*/site-packages)
  site_packages=${candidates[0]}
}

# install_wheels STAMP WHAT SENTINEL PIP-ARGUMENTS...: one step that is done when SENTINEL exists and STAMP is of these
# arguments. Downloads are kept in .moebius/wheels until they are installed, so an interrupted call does not repeat
# the ones that ended; pip shows its progress bar on a terminal.
install_wheels() {
  local stamp=wheels-$1 what=$2 sentinel=$3 log=$logs/pip-$1.log word options=(); shift 3
  find_site_packages
  if [[ -e $site_packages/$sentinel ]] && step_is_done "$stamp" "$*"; then return; fi
  ensure_venv
  find_site_packages
  say "fetching $what"
  rm -f -- "$log"
  for word in "$@"; do
    if [[ $word == -* ]]; then
      options+=("$word")
    else
      run_pip "$log" download --dest "$home/wheels" --find-links "$home/wheels" --no-deps "$word" || fetch_failed "$what" "$log"
    fi
  done
  if ((${#options[@]} == 0)); then
    run_pip "$log" download --dest "$home/wheels" --find-links "$home/wheels" "$@" || fetch_failed "$what" "$log"
  fi
  # An unpacking that was cut off leaves files that pip does not know: --ignore-installed overwrites them.
  say "installing $what"
  run_pip "$log" install --no-index --find-links "$home/wheels" --ignore-installed --no-warn-script-location "$@" ||
    fetch_failed "$what" "$log"
  [[ -e $site_packages/$sentinel ]] || die 1 "pip installed $what without $sentinel" "Log: $log"
  step_done "$stamp" "$*"
  rm -rf -- "$home/wheels"
}

run_pip() {  # run_pip LOG VERB ARGUMENTS...
  local log=$1; shift
  "$venv/bin/python" -m pip "$@" --disable-pip-version-check --no-input --log "$log" >&2 9>&-
}

fetch_failed() {  # fetch_failed WHAT LOG
  local what=$1 log=$2
  if grep -qE 'NewConnectionError|ConnectTimeout|Temporary failure in name resolution|Network is unreachable|Max retries|ReadTimeout|from versions: none' "$log"; then
    die 1 "could not reach the Python package index to fetch $what" "Log: $log" \
      "Check the network, HTTPS_PROXY and pip's settings (PIP_INDEX_URL), then call again: what was fetched is kept." \
      "Without a network: name your own torch $TORCH_VERSION with --torch-dir DIR or MOEBIUS_TORCH_DIR."
  fi
  if grep -q 'No space left on device' "$log"; then
    die 1 "the disk is full: $what needs about $([[ $what == *full* ]] && echo 12 || echo 3) GiB free in $home" "Log: $log"
  fi
  die 1 "pip could not install $what" "Log: $log" \
    "Call again to go on; ./moebius clean --all removes all that was fetched, to begin anew."
}

# A user's own libtorch: right version, complete, and loadable. Ends the program otherwise.
check_torch_dir() {
  local dir=$1 header version lacking
  local advice=("Name a folder with include/ and lib/ of torch $TORCH_VERSION, for instance what this prints:" \
    "  python3 -c 'import torch; print(torch.__path__[0])'" \
    "or go back to the fetched one: --torch-dir fetched, and unset MOEBIUS_TORCH_DIR.")
  [[ -d $dir ]] || die 2 "the libtorch folder '$dir' does not exist" "${advice[@]}"
  header=$dir/include/torch/headeronly/version.h
  [[ -r $header || ! -r $dir/include/torch/csrc/api/include/torch/version.h ]] || header=$dir/include/torch/csrc/api/include/torch/version.h
  if [[ ! -r $header || ! -r $dir/lib/libtorch_cpu.so ]]; then
    die 2 "'$dir' is no libtorch: lib/libtorch_cpu.so or include/torch/headeronly/version.h is missing" "${advice[@]}"
  fi
  version=$(awk '/#define TORCH_VERSION_(MAJOR|MINOR|PATCH) / {v = v sep $3; sep = "."} END {print v}' "$header")
  if [[ $version != "$TORCH_VERSION" ]]; then
    die 2 "the libtorch in '$dir' is ${version:-of an unknown version}, and moebius is built for $TORCH_VERSION" "${advice[@]}"
  fi
  lacking=$(ldd "$dir/lib/libtorch_cpu.so" 2>/dev/null | awk '/not found/ {printf "%s ", $1}')
  if [[ -n $lacking ]]; then
    die 2 "the libtorch in '$dir' cannot be loaded: ${lacking}not found" \
      "Its CPU half needs the CUDA runtime: pip install --no-deps $CUDA_RUNTIME_WHEELS beside it."
  fi
}

ensure_torch() {
  if [[ -n $torch_dir ]]; then
    check_torch_dir "$torch_dir"
    torch=$(readlink -f -- "$torch_dir")
    return
  fi
  find_site_packages
  if ((want_gpu)); then
    install_wheels torch-full "libtorch $TORCH_VERSION, full set for the GPU (about 3 GB)" torch/lib/libtorch_cuda.so \
      "torch==$TORCH_VERSION"
  elif [[ ! -e $site_packages/torch/lib/libtorch_cpu.so ]] || ! step_is_done wheels-torch-full "torch==$TORCH_VERSION"; then
    # shellcheck disable=SC2086  # a list of words
    install_wheels torch "libtorch $TORCH_VERSION (about 550 MB)" torch/lib/libtorch_cpu.so \
      --no-deps "torch==$TORCH_VERSION" $CUDA_RUNTIME_WHEELS
  fi
  torch=$site_packages/torch
}

# nvcc of the machine when its major version is that of libtorch; otherwise from wheels where a GPU is to be used.
ensure_nvcc() {
  local found=
  nvcc=
  if [[ $cuda_choice == off ]]; then return; fi
  if [[ ! -e $torch/lib/libtorch_cuda.so ]]; then
    say "the libtorch in $torch has no CUDA half: building without the CUDA plug-in"
    return
  fi
  if [[ -n $nvcc_path ]]; then
    found=$("$nvcc_path" --version 2>/dev/null | sed -n 's/.*release \([0-9]*\)\..*/\1/p')
    if [[ $found == "$CUDA_MAJOR" ]]; then nvcc=$nvcc_path; return; fi
    say "$nvcc_path is of CUDA ${found:-?}; libtorch $TORCH_VERSION needs CUDA $CUDA_MAJOR$( ((want_gpu)) || echo ': building without the CUDA plug-in')"
  fi
  if ((want_gpu)); then
    # shellcheck disable=SC2086  # a list of words
    install_wheels nvcc "the CUDA compiler (nvcc $CUDA_MAJOR)" nvidia/cu13/bin/nvcc --no-deps $NVCC_WHEELS
    nvcc=$site_packages/nvidia/cu13/bin/nvcc
    complete_nvcc_wheels "$site_packages/nvidia/cu13"
  fi
}

# The wheels' folder lacks the names that a toolkit has for linking.
complete_nvcc_wheels() {
  local cuda=$1
  if [[ ! -e $cuda/lib64 ]]; then ln -s lib "$cuda/lib64"; fi
  if [[ ! -e $cuda/lib/libcudart.so ]]; then ln -s libcudart.so.13 "$cuda/lib/libcudart.so"; fi
}

ensure_build_tools() {
  local minimum=$CMAKE_MINIMUM version
  if [[ -n $nvcc ]]; then minimum=$CMAKE_MINIMUM_CUDA; fi
  cmake=$(type -P cmake) || cmake=
  version=$([[ -n $cmake ]] && "$cmake" --version 2>/dev/null | sed -n '1s/[^0-9]*//p')
  if [[ -z $version ]] || ! version_at_least "$version" "$minimum"; then
    install_wheels cmake "CMake (this machine has ${version:-none}, $minimum is needed)" cmake/data/bin/cmake --no-deps "$CMAKE_WHEEL"
    cmake=$site_packages/cmake/data/bin/cmake
  fi
  ctest=${cmake%/*}/ctest
  ninja=$(type -P ninja) || ninja=
  version=$([[ -n $ninja ]] && "$ninja" --version 2>/dev/null)
  if [[ -z $version ]] || ! version_at_least "$version" "$NINJA_MINIMUM"; then
    install_wheels ninja "Ninja" ninja/data/bin/ninja --no-deps "$NINJA_WHEEL"
    ninja=$site_packages/ninja/data/bin/ninja
  fi
}

ensure_fetched() {
  want_gpu=0
  case $cuda_choice in
    auto) want_gpu=$has_driver ;;
    on) want_gpu=1 ;;
    off) ;;
    *) die 2 "MOEBIUS_CUDA is '$cuda_choice'" "It can be auto, on or off." ;;
  esac
  ensure_torch
  ensure_nvcc
  ensure_build_tools
}
