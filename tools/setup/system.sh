# shellcheck shell=bash disable=SC2154,SC2034,SC1091
# Distribution packages from system-packages.txt. Sourced by prepare.sh.

listed_packages() { sed -e 's/#.*//' -e 's/[[:space:]]//g' -e '/^$/d' -- "$setup/system-packages.txt"; }

missing_packages() {
  local name
  while IFS= read -r name; do
    if [[ $(dpkg-query -W -f='${db:Status-Status}' -- "$name" 2>/dev/null) != installed ]]; then echo "$name"; fi
  done < <(listed_packages)
}

# "" when this user may install, "sudo -n" when sudo asks for no password; fails when neither.
install_prefix() {
  if ((EUID == 0)); then return 0; fi
  if type -P sudo >/dev/null && sudo -n true 2>/dev/null; then echo "sudo -n"; return 0; fi
  return 1
}

ensure_system_packages() {
  local wanted missing prefix log=$logs/packages.log
  wanted=$(listed_packages)
  if ! type -P dpkg-query >/dev/null; then
    if ! step_is_done packages "$wanted"; then
      say "not a Debian or Ubuntu system: make sure that these packages are there under their names here:"
      say "$(tr '\n' ' ' <<<"$wanted")"
      step_done packages "$wanted"
    fi
    return
  fi
  if step_is_done packages "$wanted" && [[ ! /var/lib/dpkg/status -nt $state/packages ]]; then return; fi
  mapfile -t missing < <(missing_packages)
  if ((${#missing[@]})); then
    if ! prefix=$(install_prefix); then
      die 2 "these system packages are missing: ${missing[*]}" \
        "Installing them needs root. Run this, then the same command again:" \
        "  sudo apt-get update && sudo apt-get install --no-install-recommends ${missing[*]}" \
        "(On Ubuntu they are in main and universe.)"
    fi
    say "installing ${#missing[@]} system packages with apt-get: ${missing[*]}"
    # shellcheck disable=SC2086  # prefix is none or two words
    if ! { $prefix env DEBIAN_FRONTEND=noninteractive apt-get update &&
           $prefix env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"; } \
        </dev/null 9>&- > >(tee -- "$log" | grep --line-buffered -E '^(Get:|Fetched|Setting up|E:|Err:)' >&2) 2>&1; then
      die 1 "apt-get could not install the system packages" "Log: $log" \
        "Without a network connection: install them by hand (${missing[*]}), then call again." \
        "If a package is unknown, this release of the distribution is too old or lacks 'universe'."
    fi
    mapfile -t missing < <(missing_packages)
    if ((${#missing[@]})); then die 1 "still missing after apt-get: ${missing[*]}" "Log: $log"; fi
  fi
  step_done packages "$wanted"
}
