# shellcheck shell=bash disable=SC2154,SC2034,SC1091
# ./moebius test. Sourced by ./moebius after prepare.sh.

test_command() {
  local label='' selection=() results status summary_status folder
  while (($#)); do
    case $1 in
      --preset) take_preset "${2:-}"; shift 2 ;;
      --preset=*) take_preset "${1#*=}"; shift ;;
      -L | -R | -LE | -E)
        (($# > 1)) || die 2 "$1 needs an expression" "For example: ./moebius test $1 ${1/-R/router}"
        if [[ $1 == -L ]]; then label=$2; fi
        selection+=("$1" "$2"); shift 2 ;;
      -V) selection+=(-V); shift ;;
      *) die 2 "./moebius test does not know '$1'" \
           "usage: ./moebius test [--preset release|dev|asan] [-L label] [-R name] [-LE label] [-E name] [-V]" \
           "Labels are fast, slow, multiproc and gpu; names are those of the test programs (regular expressions)." ;;
    esac
  done
  if ((!has_driver)); then
    if [[ $label == gpu ]]; then
      die 2 "tests labelled gpu need an NVIDIA GPU, and no driver is loaded here" "./moebius doctor says what is missing."
    fi
    selection+=(-LE '^gpu$')
  fi

  watched=("${sources[@]}")
  for folder in tests bench tools configs; do if [[ -d $root/$folder ]]; then watched+=("$root/$folder"); fi; done
  if ! is_current "$state/$preset-all.stamp" "${watched[@]}" || [[ ! -f $root/build/$preset/build.ninja ]]; then
    prepare_all "$preset" all
  fi
  if [[ -z ${ctest:-} ]]; then IFS= read -r ctest <"$state/ctest"; fi

  results=$root/build/$preset/test-results
  rm -rf -- "$results"
  mkdir -p -- "$results"
  (cd -- "$root" && "$ctest" --test-dir "$root/build/$preset" --output-on-failure --output-junit "$results/ctest.junit" \
    -j "$(nproc)" ${selection[@]+"${selection[@]}"})
  status=$?
  python3 "$setup/test_summary.py" "$results"
  summary_status=$?
  if ((summary_status != 0)); then exit "$summary_status"; fi
  exit "$status"
}
