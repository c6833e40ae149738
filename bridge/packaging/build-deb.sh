#!/usr/bin/env bash
# Builds the Debian package into target/debian. Needs cargo-deb (`cargo install cargo-deb --locked`) and dpkg-dev.
#
#   bridge/packaging/build-deb.sh               the release profile
#   PROFILE=dev bridge/packaging/build-deb.sh --no-build   what is built already, to look at the package itself
set -euo pipefail
cd "$(dirname "$0")/../.."

profile=${PROFILE:-release}
folder=$profile
[ "$profile" = dev ] && folder=debug
target=${CARGO_TARGET_DIR:-target}

command -v cargo-deb >/dev/null || {
    echo "cargo-deb is missing: cargo install cargo-deb --locked" >&2
    exit 1
}
[ "${1:-}" = --no-build ] || cargo build --locked --package paperclip-bridge --profile "$profile"

# Made by the program that is packaged, so that they tell of its own commands.
program=$target/$folder/paperclip-bridge
made=$target/package
rm -rf "$made"
mkdir -p "$made/man" "$made/completions"
"$program" man "$made/man"
"$program" completions bash >"$made/completions/paperclip-bridge"
"$program" completions zsh >"$made/completions/_paperclip-bridge"
"$program" completions fish >"$made/completions/paperclip-bridge.fish"

# What changed is in CHANGELOG.md, for every way of installing; Debian wants a file of its own form.
version=$(sed -n '/^\[workspace.package\]/,/^\[/ s/^version = "\(.*\)"/\1/p' Cargo.toml)
maintainer=$(sed -n 's/^maintainer = "\(.*\)"/\1/p' bridge/Cargo.toml)
at=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
printf 'paperclip-bridge (%s-1) unstable; urgency=medium\n\n  * See /usr/share/doc/paperclip-bridge/CHANGELOG.md.\n\n -- %s  %s\n' \
    "$version" "$maintainer" "$(LC_ALL=C date -u -R -d "@$at")" >"$made/changelog"

cargo deb --locked --package paperclip-bridge --no-build --profile "$profile" --output "$target/debian/"
